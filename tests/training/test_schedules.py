"""Schedules of the learning rate, and the numbers of the optimizer, against torch's own."""

import copy
import json
import math
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, SequentialLR

from moe_model import LanguageModel, ModelConfig, read_checkpoint
from moe_model.training import step as parts
from moe_model.training.options import Options
from moe_model.training.resolving import resolve
from tests.training.conftest import SHORT, GetTrained
from tests.training.story import ReadLog, Train, steps


def rates(total: int, **fields: Any) -> list[float]:
    options = resolve(Options(steps=total, lr=2e-3, **fields))
    return [parts.learning_rate_at(step, options) for step in range(1, total + 1)]


@pytest.mark.parametrize("total", [1, 7, 300, 1500])
def test_without_options_the_schedule_is_to_the_bit_what_it_was(total: int) -> None:
    warm = max(1, min(100, total // 10))
    for step, rate in enumerate(rates(total), 1):
        turn = math.cos(math.pi * ((step - warm) / max(1, total - warm)))
        before = 2e-3 * step / warm if step <= warm else 2e-3 * (0.1 + (1 - 0.1) * (1 + turn) / 2)
        assert rate == before, step


@pytest.mark.parametrize(("warmup", "low"), [(20, 0.25), (0, 0.0)])
@pytest.mark.parametrize("name", ["cosine", "wsd", "constant"])
def test_every_schedule_is_that_of_torch(name: str, warmup: int, low: float) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-3)
    cosine = CosineAnnealingLR(optimizer, 200 - warmup, eta_min=2e-3 * low)
    after = {"cosine": [cosine], "constant": [ConstantLR(optimizer, 1.0)]}
    after["wsd"] = [*after["constant"], LinearLR(optimizer, 1.0, low, total_iters=60)]
    first = LinearLR(optimizer, 1e-9, 1.0, total_iters=max(1, warmup))
    ends = [warmup, 140][: len(after[name])]
    schedule = SequentialLR(optimizer, [first, *after[name]], ends)
    own = {"wsd": {"decay": 0.3, "min_lr": low}, "cosine": {"min_lr": low}}.get(name, {})
    for step, rate in enumerate(rates(200, lr_schedule=name, warmup=warmup, **own), 1):
        optimizer.step()
        schedule.step()  # type: ignore[no-untyped-call]  # torch
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6, abs=1e-11), step


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_router_factor_decay_and_clip_are_those_of_torch(clip: float) -> None:
    fields = {"hidden_size": 16, "num_hidden_layers": 2, "moe_intermediate_size": 8}
    model = LanguageModel(ModelConfig.preset("tiny", vocab_size=20, **fields))
    twin = copy.deepcopy(model)
    groups = [
        {"params": [p], "weight_decay": 0.3 * (p.ndim > 1), "lr": 2.5e-3 if "router" in n else 0.01}
        for n, p in twin.named_parameters()
    ]  # fmt: skip
    theirs = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
    ours = parts.make_optimizer(model, Options(lr=1.0, weight_decay=0.3, router_lr=0.25))
    parts.set_learning_rate(ours, 1e-2)
    for step in range(3):
        for one, other in zip(model.parameters(), twin.parameters(), strict=True):
            one.grad = torch.randn_like(one) * step
            other.grad = one.grad.clone()
        norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), clip or math.inf)
        parts.clip_gradients(model, norm, 1.0, clip)
        ours.step()
        theirs.step()
    for (name, one), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("flag", ["--router-lr=0", "--weight-decay=5", "--clip=1e-8"])
def test_a_run_learns_with_the_numbers_it_was_given(flag: str, trained: GetTrained) -> None:
    ends = (trained(*SHORT, *more).checkpoints / "latest" for more in ((), (flag,)))
    one, other = (load_file(end / "model.safetensors") for end in ends)
    moved = {name for name in one if (one[name] - other[name]).norm() > 1e-3 * one[name].norm()}
    assert any("router" in name for name in moved)


def test_a_resume_that_changes_the_rate_says_from_what_to_what(
    copied: GetTrained, train: Train, capsys: Any
) -> None:
    """From a checkpoint that was written before there were schedules."""
    path = copied(*SHORT).checkpoints / "latest" / "checkpoint.json"
    plain = json.loads(path.read_text("utf-8"))
    for new in ("lr_schedule", "warmup", "decay", "min_lr", "router_lr", "weight_decay", "clip"):
        del plain["options"][new]
    del plain["sha256"]
    path.write_text(json.dumps(plain), "utf-8")
    assert train("--run=r", "--resume=auto", "--steps=8") == 0
    assert "the learning rate changes from 0.0003 to 0.00135 at step 5:" in capsys.readouterr().err


def test_a_run_keeps_its_warm_up_whatever_steps_it_gets_later(
    trained: GetTrained, train: Train, read_log: ReadLog
) -> None:
    for run, flags, start, steps_now, expected in (
        ("more", "--lr-schedule=constant", "latest", 60, [1] * 56),
        ("fewer", "--warmup=4", "previous", 3, [3 / 4]),
    ):
        before = trained(*SHORT, flags).checkpoints / start
        assert train(f"--run={run}", f"--resume={before}", f"--steps={steps_now}") == 0
        found = [row["learning_rate"] / 3e-3 for row in steps(read_log(run))]
        assert found == pytest.approx(expected)
    assert train("--run=n", f"--resume={before}", "--steps=3", "--warmup=5") == 64


def test_a_constant_run_ends_with_wsd_without_a_jump(
    trained: GetTrained, train: Train, read_log: ReadLog, tmp_path: Any, capsys: Any
) -> None:
    before = trained(*SHORT, "--lr-schedule=constant", "--router-lr=0.5", "--clip=0.7").checkpoints
    assert train("--run=r", f"--resume={before}", "--steps=10", "--lr-schedule=wsd") == 0
    assert "the learning rate changes" not in capsys.readouterr().err
    log = read_log("r")
    found = [row["learning_rate"] for row in steps(log)]
    assert found == pytest.approx([3e-3] * 4 + [1.65e-3, 3e-4])
    saved = read_checkpoint(tmp_path / "ck" / "r").description["options"]
    wanted = {"lr_schedule": "wsd", "decay": 0.2, "min_lr": 0.1, "router_lr": 0.5, "clip": 0.7}
    assert {k: saved[k] for k in wanted} == {k: log[0]["config"][k] for k in wanted} == wanted
