"""Whole runs: what they write, that they learn, and that they can be repeated."""

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
from safetensors.torch import load_file

from moe_model import TRAINING_STATE, generate as generate_module, read_checkpoint, run_command
from moe_model.training import help as help_module
from tests.forked import Program
from tests.training.conftest import GetTrained
from tests.training.story import Capsys, ReadLog, Train, steps, story

LEARNING = ("--steps=110", "--eval-every=20", "--lr=5e-3", "--on-collapse=stop")
"""Long enough to be judged."""
WITH_MTP = ("--steps=30", "--lr=0.01", "--mtp")


def test_a_run_writes_log_and_checkpoints_and_exits_0(
    start: Callable[..., Program], read_log: ReadLog, tmp_path: Path
) -> None:
    flags = ("--run=a run", "--steps=6", "--eval-every=4", "--save-every=2", "--grad-accum=2")
    process = start(*flags)
    output, narration = process.communicate()
    assert process.returncode == 0, narration
    assert output == "", "standard output is data, and a training run has none"
    watch = re.search(r"watch it: (\S*moe-microscope) '.*/a run'\n", narration)
    assert watch is not None
    assert shutil.which(watch[1]), "as printed, also where no environment is activated"
    assert "finished at step 6/6" in narration
    assert re.search(r"balance c +L1 0\.\d\d +L2 0\.\d\d  \(1 = even, 0 = coll", narration)
    assert re.search(r"verdict +not judged yet \(warm-up until step 100\)\n", narration)
    best = tmp_path / "ck" / "a run" / "best"
    assert re.search(rf"try it +\S*python -m moe_model.generate '{best}'\n", narration)

    head, *rest = read_log("a run")
    assert (head["kind"], head["planned_steps"], head["balance"]["method"]) == ("run", 6, "bias")
    assert (head["model"]["layers"], head["model"]["num_experts"]) == ([1, 2], 8)
    assert head["balance"]["update"] == "sign"
    assert head["balance"]["names"]["bias_update_rate"] == "--bias-update-rate"
    assert (head["config"]["batch_size"], head["config"]["model"]["hidden_size"]) == (4, 32)
    assert [record["step"] for record in steps(rest)] == list(range(1, 7))
    for record in steps(rest):
        assert record["tokens"] == 4 * 32 * 2
        assert [sum(row) for row in record["tokens_per_expert"]] == [record["tokens"] * 2] * 2
        both = (record["router"][name] for name in ("entropy", "mean_entropy"))
        for entropy, mean in zip(*both, strict=True):
            assert 0 < entropy <= mean + 1e-4 <= math.log(8) + 2e-4
    events = {(r["event"], r["step"]) for r in rest if r["kind"] == "event"}
    assert events >= {("eval", 4), ("eval", 6), ("checkpoint", 2), ("checkpoint", 6)}
    assert ("eval", 2) not in events
    assert (rest[-1]["event"], rest[-1]["reason"]) == ("end", "finished")

    checkpoint = read_checkpoint(best.parent / "latest")
    assert checkpoint.step == 6
    plain = json.loads((checkpoint.folder / "checkpoint.json").read_text("utf-8"))
    assert plain["step"] == plain["options"]["steps"] == 6
    assert plain["tokenizer"]["kind"] == "char"
    # As large as the help says: weights and two moments.
    sizes = {path.name: path.stat().st_size for path in checkpoint.folder.glob("*.safetensors")}
    expected = sizes["model.safetensors"] * help_module.SAVED_BYTES_PER_PARAMETER / 4
    assert sum(sizes.values()) == pytest.approx(expected, rel=0.1)
    assert load_file(checkpoint.folder / TRAINING_STATE)
    assert read_checkpoint(best).load_model()


def test_loss_falls_and_held_out_loss_with_it_in_a_healthy_run(trained: GetTrained) -> None:
    run = trained(*LEARNING)
    assert run.code == 0
    assert "verdict    healthy" in run.narration
    assert not [record for record in run.log if record.get("event") == "alert"]
    losses = [record["loss"] for record in steps(run.log)]
    assert losses[0] == pytest.approx(math.log(24), abs=0.1), "24 characters, all equally likely"
    # A change that should change no number must not change these.
    assert losses[:30:6] == pytest.approx([3.274, 2.703, 2.042, 1.534, 1.255], abs=0.02)
    assert losses[-1] < losses[0] - 0.7
    first, *held_out = [r["values"]["loss"] for r in run.log if r.get("event") == "eval"]
    assert first == pytest.approx(math.log(24), abs=0.1), "of step 0"
    assert len(held_out) == 6
    assert held_out[:3] == sorted(held_out[:3], reverse=True)
    assert held_out[2] < held_out[0] - 0.5


def test_a_short_source_counts_as_much_as_a_long_one_in_the_held_out_loss(
    train: Train, read_log: ReadLog, text_file: Path, tmp_path: Path
) -> None:
    (short := tmp_path / "short.txt").write_text("the routers of the rest " * 30, "utf-8")
    assert train("--run=both", f"--data={text_file} {short}", "--steps=5", "--lr=0.01") == 0
    alone = (f"--resume={tmp_path / 'ck' / 'both'}", "--steps=6", "--lr=1e-12")
    assert train("--run=one", f"--data={text_file}", *alone) == 0
    assert train("--run=other", f"--data={short}", *alone) == 0
    ends = [
        [e for e in read_log(run) if e.get("event") == "eval"][-1]
        for run in ("both", "one", "other")
    ]
    both, one, other = (event["values"]["loss"] for event in ends)
    assert abs(one - other) > 0.1
    assert both == pytest.approx((one + other) / 2, abs=1e-4)


def test_bias_of_a_line_is_the_one_its_tokens_were_routed_with(trained: GetTrained) -> None:
    first, second, *_ = log = steps(trained(*LEARNING).log)
    assert first["expert_bias"] == [[0.0] * 8] * 2
    for counts, bias in zip(first["tokens_per_expert"], second["expert_bias"], strict=True):
        fair = sum(counts) / 8
        expected = [0.01 * ((fair > count) - (fair < count)) for count in counts]
        assert bias == pytest.approx(expected)
    assert log[-1]["expert_bias"] == log[-2]["expert_bias"], "the rate is zero at the end"


def test_same_seed_same_losses_and_biases_and_another_not(train: Train, read_log: ReadLog) -> None:
    """Evaluation at other steps must not change the run either."""
    for run, seed, every in (("a", 7, 2), ("b", 7, 3), ("c", 8, 3)):
        flags = (f"--run={run}", f"--seed={seed}", f"--eval-every={every}")
        assert train(*flags, "--steps=4", "--router-noise=0.1") == 0
    first, same, other = (steps(story(read_log(run))) for run in ("a", "b", "c"))
    assert first == same
    assert first != other


@pytest.mark.parametrize("balance", ["aux", "none"])
def test_other_balancing_has_no_bias(balance: str, train: Train, read_log: ReadLog) -> None:
    assert train("--run=r", "--steps=2", f"--balance={balance}") == 0
    head, *rest = read_log("r")
    assert head["balance"]["method"] == balance
    assert head["balance"]["update"] is None
    assert head["balance"]["aux_weight"] == (0.01 if balance == "aux" else 0)
    for record in steps(rest):
        assert record["expert_bias"] == [[0.0] * 8] * 2
        assert set(record["losses"]) == ({"aux"} if balance == "aux" else set())
        even = record["losses"].get("aux") == pytest.approx(1.0, abs=1e-6)
        assert even == (balance == "aux" and record["step"] == 1), "counts of the step before"
        assert all(0.9 < value < 4 for value in record["losses"].values())


def test_routers_without_bias_are_given_none(train: Train, tmp_path: Path, capsys: Capsys) -> None:
    """As in DeepSeek-V2: what it would learn could not be exported."""
    softmax = ("--model.topk_method=greedy", "--model.scoring_func=softmax", "--steps=2")
    assert train("--run=r", *softmax) == 64
    assert (
        "a router with topk_method=greedy has no bias, which --balance bias updates"
        in capsys.readouterr().err
    )
    assert train("--run=r", *softmax, "--balance=aux") == 0
    model = read_checkpoint(tmp_path / "ck" / "r").load_model()
    assert not any(router.expert_bias.any() for router in model.routers)


def test_capacity_noise_and_z_loss_reach_model_and_log(train: Train, read_log: ReadLog) -> None:
    flags = ["--capacity-factor=0.5", "--drop-policy=weight", "--router-noise=0.1"]
    assert train("--run=r", "--steps=2", *flags, "--z-loss-weight=0.001") == 0
    head, *rest = read_log("r")
    assert head["model"]["capacity_factor"] == 0.5
    assert head["balance"]["z_loss_weight"] == 0.001
    fields = head["config"]["model"]
    assert (fields["drop_policy"], fields["router_jitter_noise"]) == ("weight", 0.1)
    for record in steps(rest):
        assert all(0.45 < rate < 0.9 for rate in record["router"]["drop_rate"])
        assert record["losses"]["z_loss"] > 0


@pytest.mark.parametrize(
    ("flags", "warned"),
    [
        (["--model.num_experts_per_tok=1"], True),
        (["--model.num_experts_per_tok=1", "--model.no-norm_topk_prob"], False),
        ([], False),
    ],
)
def test_one_expert_with_normalised_weights_is_warned_of_because_its_router_learns_nothing(
    flags: list[str], warned: bool, train: Train, read_log: ReadLog, capsys: Capsys
) -> None:
    assert train("--run=r", "--steps=2", "--seq-aux-weight=0", *flags) == 0
    narration = capsys.readouterr().err
    assert ("top-1 normalised since step 1" in narration) == warned
    norms = [norm for record in steps(read_log("r")) for norm in record["router"]["grad_norm"]]
    assert (max(norms) < 1e-8) == warned


def test_the_log_is_never_behind_its_checkpoint(
    trainer: ModuleType, train: Train, monkeypatch: pytest.MonkeyPatch, read_log: ReadLog
) -> None:
    seen = []
    real = trainer.Checkpoints.save

    def save(self: Any, name: str, step: int, write: Any) -> Path:
        seen.append((name, step, read_log("r")[-1]["step"]))
        return real(self, name, step, write)

    monkeypatch.setattr(trainer.Checkpoints, "save", save)
    assert train("--run=r", "--steps=5", "--save-every=2", "--eval-every=3") == 0
    assert len(seen) == 5
    assert all(logged == step for _, step, logged in seen)


def test_a_broken_recorder_costs_a_warning_and_not_the_run(
    trainer: ModuleType, train: Train, monkeypatch: Any, capsys: Capsys, tmp_path: Path
) -> None:
    fail = mock.Mock(side_effect=RuntimeError("disk on fire"))
    monkeypatch.setattr(trainer.RunRecorder, "record_step", fail)
    assert train("--run=r", "--steps=2") == 0
    narration = capsys.readouterr().err
    assert narration.count("training continues: RuntimeError('disk on fire')") == 1
    assert read_checkpoint(tmp_path / "ck" / "r").step == 2


def test_a_gradient_that_is_not_finite_moves_nothing_and_too_many_end_the_run(
    trainer: ModuleType, train: Train, monkeypatch: Any, read_log: ReadLog, capsys: Capsys
) -> None:
    real = trainer.gradient_squares
    monkeypatch.setattr(trainer, "gradient_squares", lambda *given: real(*given) * math.nan)
    assert train("--run=r", "--steps=30") == 1
    assert "not finite in 20 consecutive steps (the last is step 20)" in capsys.readouterr().err
    log = read_log("r")
    assert len(steps(log)) == 20
    assert all(record["expert_bias"] == [[0.0] * 8] * 2 for record in steps(log))
    assert log[-1]["reason"] == "failed"


def test_multi_token_prediction_is_trained_logged_balanced_and_drafts_the_same_text(
    trained: GetTrained, capsys: Capsys
) -> None:
    run = trained(*WITH_MTP)
    head, *rest = run.log
    assert head["model"]["layer_names"] == ["L1", "L2", "mtp.0"]
    losses = [record["losses"]["mtp"] for record in steps(rest)]
    assert losses[-1] < losses[0] - 0.3
    assert [sum(row) for row in steps(rest)[-1]["tokens_per_expert"]] == [4 * 32 * 2] * 3
    assert any(steps(rest)[-1]["expert_bias"][2])
    command = [str(run.checkpoints / "best"), "--prompt=the ", "--max-new-tokens=60"]
    printed = []
    for flags in ([], [], ["--draft"]):
        assert run_command(generate_module.app, [*command, *flags]) == 0
        printed.append(capsys.readouterr())
    plain, again, drafted = printed
    assert plain.out == again.out == drafted.out
    assert plain.out.startswith("the ")
    assert len(plain.out) == len("the ") + 60 + 1
    assert "60 tokens in" in plain.err
    assert "1.00 tokens a pass" in plain.err
    assert "1.00 tokens a pass" not in drafted.err, "some guesses are right by now"


@pytest.mark.parametrize("compiled", [False, True])
def test_only_experts_that_are_not_compiled_are_told_of_the_next_pass(
    trainer: ModuleType, train: Train, monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    """A changed attribute would compile them again."""
    told: list[bool] = []
    real = trainer.forward_and_backward

    def watched(run: Any, *rest: Any) -> Any:
        (experts, *_) = trainer.all_experts(run.model)
        experts.register_forward_pre_hook(lambda module, _: told.append(module.again))
        return real(replace(run, options=replace(run.options, compile=compiled)), *rest)

    monkeypatch.setattr(trainer, "forward_and_backward", watched)
    assert train("--run=r", "--steps=1", "--grad-accum=2") == 0
    assert told[:2] == [not compiled, False]
