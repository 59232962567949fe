"""Number formats, recomputation, accumulation: the same run, and exact counts."""

import math
from types import ModuleType
from typing import Any

import pytest
import torch

from moe_model import Experts, ModelConfig
from tests.training.conftest import GetTrained
from tests.training.story import ReadLog, Train, from_step, steps, story


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_recomputing_layers_changes_nothing(dtype: str, trained: GetTrained) -> None:
    """Noise and capacity are on: what is computed again must draw and drop the same."""
    flags = (f"--dtype={dtype}", "--steps=3", "--mtp", "--eval-every=2", "--router-noise=0.1")
    kept, again = (
        story(trained(*flags, "--capacity-factor=1.0", *more).log)
        for more in ((), ("--activation-checkpointing",))
    )
    assert from_step(kept, 0) == from_step(again, 0)


@pytest.mark.parametrize(("more", "times"), [((), 2 * 2), (("--activation-checkpointing",), 0)])
def test_experts_keep_a_cast_for_all_but_the_last_pass_of_a_step(
    more: tuple[str, ...], times: int, train: Train, monkeypatch: Any
) -> None:
    kept, real = [], Experts.forward
    monkeypatch.setattr(
        Experts, "forward", lambda own, *x: (kept.append(own.again), real(own, *x))[1]
    )
    assert train("--run=r", "--dtype=bf16", "--steps=1", "--grad-accum=3", *more) == 0
    assert sum(kept) == times


def test_passes_that_share_a_cast_have_the_gradients_of_those_that_do_not() -> None:
    experts, found = Experts(ModelConfig.preset("tiny", vocab_size=9)), []
    x_TD, ids_TK = torch.randn(6, experts.down_proj.shape[1]), torch.arange(12).view(6, 2) % 8
    for shared in (False, True):
        experts.zero_grad()
        for again in (shared, False):
            assert bool(experts._cast) is (shared > again)
            experts.again = again
            with torch.autocast("cpu", torch.bfloat16):
                experts(x_TD, ids_TK, torch.ones(6, 2)).square().sum().backward()
        found.append([p.grad.clone() for p in experts.parameters() if p.grad is not None])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_accumulating_recomputed_layers_in_fp16_changes_only_rounding(trained: GetTrained) -> None:
    common = ("--dtype=fp16", "--steps=4", "--mtp", "--eval-every=2", "--activation-checkpointing")
    whole, parts = (
        steps(trained(*common, f"--batch-size={size}", f"--grad-accum={passes}").log)
        for size, passes in ((4, 1), (1, 4))
    )
    # Later a rounding may have turned a near-tie.
    assert parts[0]["tokens_per_expert"] == whole[0]["tokens_per_expert"]
    for one, other in zip(whole, parts, strict=True):
        for row in (one, other):
            assert [sum(counts) for counts in row["tokens_per_expert"]] == [4 * 32 * 2] * 3
        assert other["loss"] == pytest.approx(one["loss"], abs=0.02)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_learns_as_fp32_does(dtype: str, trained: GetTrained) -> None:
    common = ("--steps=30", "--lr=5e-3")
    exact, other = (steps(trained(*common, f"--dtype={kind}").log) for kind in ("fp32", dtype))
    assert other[-1]["loss"] == pytest.approx(exact[-1]["loss"], abs=0.06)
    assert other[-1]["loss"] < other[0]["loss"] - 0.7


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_fp16_finds_its_loss_scale_and_a_skipped_step_moves_neither_weights_nor_bias(
    optimizer: str, trainer: ModuleType, train: Train, monkeypatch: Any, read_log: ReadLog
) -> None:
    seen = []

    def step(run: object, at: int) -> object:
        if at == 1:  # far too high: the first steps overflow
            run.loss_scale.scale = 2.0**24  # type: ignore[attr-defined]
        weights = [*run.model.parameters()]  # type: ignore[attr-defined]
        before = [weight.clone() for weight in weights]
        record = real(run, at)
        moved = any(not torch.equal(*pair) for pair in zip(before, weights, strict=True))
        seen.append((moved, math.isfinite(record["grad_norm"]), run.loss_scale.scale))  # type: ignore[attr-defined]
        return record

    real = trainer.optimizer_step
    monkeypatch.setattr(trainer, "optimizer_step", step)
    assert train("--run=r", "--dtype=fp16", "--steps=15", f"--optimizer={optimizer}") == 0
    assert not seen[0][1]
    assert seen[-1][1]
    assert all(moved == finite for moved, finite, _ in seen)
    skipped = sum(not finite for _, finite, _ in seen)
    assert seen[-1][2] == 2.0 ** (24 - skipped)
    rows = steps(read_log("r"))
    assert not any(any(row) for row in rows[skipped]["expert_bias"]), "the bias has not moved yet"
    assert any(any(row) for row in rows[skipped + 1]["expert_bias"])
    assert rows[0]["grad_norm"] in ("Infinity", "NaN")
