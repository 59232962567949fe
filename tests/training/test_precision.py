"""Number formats, recomputation, accumulation: the same run, and exact counts."""

import math
from types import ModuleType

import pytest
import torch

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


def test_fp16_finds_its_loss_scale_and_a_skipped_step_moves_neither_weights_nor_bias(
    trainer: ModuleType, train: Train, monkeypatch: pytest.MonkeyPatch, read_log: ReadLog
) -> None:
    seen = []

    def step(run: object, at: int) -> object:
        if at == 1:  # far too high: the first steps overflow
            run.loss_scale.scale = 2.0**24  # type: ignore[attr-defined]
        before = run.model.embed_tokens.weight.clone()  # type: ignore[attr-defined]
        record = real(run, at)
        moved = not torch.equal(before, run.model.embed_tokens.weight)  # type: ignore[attr-defined]
        seen.append((moved, math.isfinite(record["grad_norm"]), run.loss_scale.scale))  # type: ignore[attr-defined]
        return record

    real = trainer.optimizer_step
    monkeypatch.setattr(trainer, "optimizer_step", step)
    assert train("--run=r", "--dtype=fp16", "--steps=15") == 0
    assert not seen[0][1]
    assert seen[-1][1]
    assert all(moved == finite for moved, finite, _ in seen)
    skipped = sum(not finite for _, finite, _ in seen)
    assert seen[-1][2] == 2.0 ** (24 - skipped)
    rows = steps(read_log("r"))
    assert not any(any(row) for row in rows[skipped]["expert_bias"]), "the bias has not moved yet"
    assert any(any(row) for row in rows[skipped + 1]["expert_bias"])
    assert rows[0]["grad_norm"] in ("Infinity", "NaN")
