"""Number formats, recomputation, accumulation, compilation: the same run, and exact counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from moe_model import LanguageModel, ModelConfig
from tests.counted import counter_of
from tests.training.story import Log, story

Train = Callable[..., int]
DTYPES = ("fp32", "bf16", "fp16")


def steps(log: Log) -> Log:
    return [record for record in story(log) if record["kind"] == "step"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_recomputing_layers_changes_nothing_and_accumulating_them_only_the_rounding(
    dtype: str, train: Train, read_log: Callable[[str], Log]
) -> None:
    """Noise and capacity are on: what is computed again must draw and drop the same."""
    common = (f"--dtype={dtype}", "--steps=4", "--mtp", "--eval-every=2")
    random = ("--router-noise=0.1", "--capacity-factor=1.0")
    for name, recompute in (("kept", ()), ("again", ("--activation-checkpointing",))):
        assert train(f"--run={name}", *common, *random, *recompute) == 0
    assert story(read_log("kept"))[:-1] == [
        {**row, "values": {**row["values"], "path": row["values"]["path"].replace("again", "kept")}}
        if "path" in row.get("values", {})
        else row
        for row in story(read_log("again"))[:-1]
    ]

    for name, size, passes in (("whole", 4, 1), ("parts", 1, 4)):
        flags = (f"--batch-size={size}", f"--grad-accum={passes}", "--activation-checkpointing")
        assert train(f"--run={name}", *common, *flags) == 0
    first = True
    for whole, parts in zip(steps(read_log("whole")), steps(read_log("parts")), strict=True):
        pairs = whole["tokens"] * 2
        for row in (whole, parts):
            assert [sum(counts) for counts in row["tokens_per_expert"]] == [pairs] * 3
        if dtype == "fp32" or first:  # later a rounding may have turned a near-tie
            assert parts["tokens_per_expert"] == whole["tokens_per_expert"]
        assert parts["loss"] == pytest.approx(whole["loss"], abs=1e-5 if dtype == "fp32" else 0.02)
        first = False


def test_half_precision_learns_as_fp32_does(train: Train, read_log: Callable[[str], Log]) -> None:
    for run in DTYPES:
        assert train(f"--run={run}", f"--dtype={run}", "--steps=40", "--lr=5e-3") == 0
    exact, *halves = (steps(read_log(run)) for run in DTYPES)
    for half in halves:
        assert half[-1]["loss"] == pytest.approx(exact[-1]["loss"], abs=0.06)
        assert half[-1]["loss"] < half[0]["loss"] - 0.7


def test_fp16_finds_its_loss_scale_and_a_skipped_step_moves_neither_weights_nor_bias(
    trainer: ModuleType,
    train: Train,
    monkeypatch: pytest.MonkeyPatch,
    read_log: Callable[[str], Log],
) -> None:
    seen = []

    def step(run: object, at: int) -> object:
        if at == 1:  # far too high: the first steps overflow
            run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)  # type: ignore[attr-defined]
        before = run.model.embed_tokens.weight.clone()  # type: ignore[attr-defined]
        record = real(run, at)
        moved = not torch.equal(before, run.model.embed_tokens.weight)  # type: ignore[attr-defined]
        seen.append((moved, math.isfinite(record["grad_norm"]), run.scaler.get_scale()))  # type: ignore[attr-defined]
        return record

    real = trainer.optimizer_step
    monkeypatch.setattr(trainer, "optimizer_step", step)
    monkeypatch.setattr("moe_model.training.setup.Run.__setattr__", object.__setattr__)
    assert train("--run=r", "--dtype=fp16", "--steps=30") == 0
    assert not seen[0][1]
    assert seen[-1][1]
    assert all(moved == finite for moved, finite, _ in seen)
    skipped = sum(not finite for _, finite, _ in seen)
    assert seen[-1][2] == 2.0 ** (30 - skipped)
    rows = steps(read_log("r"))
    assert not any(any(row) for row in rows[skipped]["expert_bias"]), "the bias has not moved yet"
    assert any(any(row) for row in rows[skipped + 1]["expert_bias"])
    assert rows[0]["grad_norm"] in ("Infinity", "NaN")


@pytest.mark.filterwarnings("default")  # what torch.compile says to itself is not ours
@pytest.mark.parametrize(("dtype", "recompute"), [("fp32", False), ("bf16", True), ("fp16", True)])
def test_a_compiled_layer_is_the_same_layer(dtype: str, recompute: bool) -> None:
    """The graph that torch.compile takes, without the code generator, which takes a minute."""
    config = ModelConfig.preset(
        "tiny", vocab_size=32, hidden_size=32, num_hidden_layers=2, intermediate_size=48,
        moe_intermediate_size=16, num_attention_heads=2, initializer_range=0.02,
    )  # fmt: skip
    ids_BS = torch.randint(32, (2, 32), generator=torch.Generator().manual_seed(0))
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    gradients, counts = [], []
    for compiled in (False, True):
        model = LanguageModel(config).train()
        model.init_weights(torch.Generator().manual_seed(1))
        model.recompute = recompute
        if compiled:
            torch._dynamo.reset()
            for layer in model.layers:
                layer.compile(backend="aot_eager")
        with torch.autocast("cpu", dtype=kinds[dtype], enabled=dtype != "fp32"):
            output = model(ids_BS)
        F.cross_entropy(output.logits_BSV.float().flatten(0, 1), ids_BS.flatten()).backward()
        gradients.append([p.grad for p in model.parameters()])
        counts.append(counter_of(model, output.routings).counts)
    assert torch.equal(*counts)
    for name, plain, other in zip(dict(model.named_parameters()), *gradients, strict=True):
        error = (plain - other).norm() / plain.norm().clamp(min=1e-6)
        assert error < (1e-4 if dtype == "fp32" else 0.05), name
