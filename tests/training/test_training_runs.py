"""Whole runs: what they write, that they learn, and that they can be repeated."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from safetensors.torch import load_file

from microscope_tui.cli import main as microscope
from moe_model import TRAINING_STATE, read_checkpoint, run_command
from moe_model import generate as generate_module
from tests.training.conftest import from_shell

Log = list[dict[str, Any]]


def steps(log: Log) -> Log:
    return [record for record in log if record["kind"] == "step"]


def test_a_run_from_the_shell_writes_log_and_checkpoints_and_exits_0(
    arguments: Callable[..., list[str]],
    read_log: Callable[[str], Log],
    tmp_path: Path,
) -> None:
    flags = ("--run=r", "--steps=12", "--eval-every=5", "--save-every=4", "--grad-accum=2")
    process = from_shell(*arguments(*flags))
    output, narration = process.communicate(timeout=120)
    assert process.returncode == 0, narration
    assert output == "", "standard output is data, and a training run has none"
    assert "watch it: moe-microscope" in narration
    assert "finished at step 12/12" in narration
    assert re.search(r"balance c +L1 0\.\d\d +L2 0\.\d\d", narration)
    assert re.search(r"verdict +not judged yet \(warm-up until step 100\)\n", narration)

    head, *rest = read_log("r")
    assert head["kind"] == "run"
    assert head["planned_steps"] == 12
    assert head["model"]["layers"] == [1, 2]
    assert head["model"]["num_experts"] == 8
    assert head["balance"]["method"] == "bias"
    assert head["config"]["batch_size"] == 4
    assert head["config"]["model"]["hidden_size"] == 32
    assert [r["step"] for r in steps(rest)] == list(range(1, 13))
    for record in steps(rest):
        assert record["tokens"] == 4 * 32 * 2
        assert [sum(row) for row in record["tokens_per_expert"]] == [record["tokens"] * 2] * 2
        for entropy, mean in zip(
            record["router"]["entropy"], record["router"]["mean_entropy"], strict=True
        ):
            assert 0 < entropy <= mean + 1e-4 <= math.log(8) + 2e-4
    events = [(r["event"], r["step"]) for r in rest if r["kind"] == "event"]
    assert {("eval", 5), ("eval", 10), ("eval", 12), ("checkpoint", 4)} <= set(events)
    assert rest[-1]["event"] == "end"
    assert rest[-1]["reason"] == "finished"

    checkpoint = read_checkpoint(tmp_path / "ck" / "r" / "latest")
    assert checkpoint.step == 12
    assert load_file(checkpoint.folder / TRAINING_STATE)
    assert read_checkpoint(tmp_path / "ck" / "r" / "best").load_model()


def test_loss_falls_and_held_out_loss_with_it(
    train: Callable[..., int], read_log: Callable[[str], Log]
) -> None:
    assert train("--run=r", "--steps=60", "--eval-every=20", "--lr=5e-3") == 0
    log = read_log("r")
    losses = [record["loss"] for record in steps(log)]
    assert losses[0] == pytest.approx(math.log(24), abs=0.1), "24 characters, all equally likely"
    assert losses[-1] < losses[0] - 0.7
    held_out = [r["values"]["loss"] for r in log if r.get("event") == "eval"]
    assert held_out == sorted(held_out, reverse=True)


def test_loss_curve_is_the_recorded_one(
    train: Callable[..., int], read_log: Callable[[str], Log]
) -> None:
    """A change that should change no number must not change these; bf16 stays within 0.02 too."""
    assert train("--run=r", "--steps=60", "--eval-every=60", "--lr=5e-3") == 0
    losses = [record["loss"] for record in steps(read_log("r"))][:30:6]
    assert losses == pytest.approx([3.274, 2.481, 1.855, 1.406, 1.162], abs=0.03)


def test_same_seed_gives_the_same_losses_and_biases_and_another_does_not(
    train: Callable[..., int], read_log: Callable[[str], Log]
) -> None:
    for run, seed in (("a", 7), ("b", 7), ("c", 8)):
        # Evaluation and checkpoints at other steps must not change the run either.
        every = {"a": 2, "b": 3, "c": 3}[run]
        assert train(f"--run={run}", f"--seed={seed}", "--steps=6", f"--eval-every={every}") == 0

    def story(run: str) -> Log:
        timing = ("time", "tokens_per_s", "step_time_s", "memory_bytes")
        return [{k: v for k, v in r.items() if k not in timing} for r in steps(read_log(run))]

    assert story("a") == story("b")
    assert story("a") != story("c")


def test_four_forward_passes_of_one_sequence_are_one_of_four(
    train: Callable[..., int], read_log: Callable[[str], Log]
) -> None:
    for run, size, passes in (("whole", 4, 1), ("parts", 1, 4)):
        flags = (f"--batch-size={size}", f"--grad-accum={passes}", "--seq-aux-weight=0.1")
        assert train(f"--run={run}", "--steps=5", *flags) == 0
    for whole, parts in zip(steps(read_log("whole")), steps(read_log("parts")), strict=True):
        assert parts["tokens_per_expert"] == whole["tokens_per_expert"]
        assert parts["expert_bias"] == whole["expert_bias"]
        assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-4)
        assert parts["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-3)
        assert parts["losses"]["seq_aux"] == pytest.approx(whole["losses"]["seq_aux"], rel=1e-4)


def test_forced_collapse_sends_every_token_to_k_experts_from_that_step_on(
    train: Callable[..., int], read_log: Callable[[str], Log]
) -> None:
    assert train("--run=r", "--steps=8", "--force-collapse=2@5") == 0
    for record in steps(read_log("r")):
        healthy, forced = record["tokens_per_expert"]
        assert sum(count > 0 for count in healthy) > 2
        if record["step"] >= 5:
            assert forced == [record["tokens"]] * 2 + [0] * 6
            assert record["router"]["effective_experts"][1] == pytest.approx(2)
        else:
            assert sum(count > 0 for count in forced) > 2


def test_bias_of_a_line_is_the_one_its_tokens_were_routed_with(
    train: Callable[..., int], read_log: Callable[[str], Log]
) -> None:
    assert train("--run=r", "--steps=40", "--bias-update-rate=0.01") == 0
    first, second, *_ = log = steps(read_log("r"))
    assert first["expert_bias"] == [[0.0] * 8] * 2
    for counts, bias in zip(first["tokens_per_expert"], second["expert_bias"], strict=True):
        fair = sum(counts) / 8
        expected = [0.01 * ((fair > count) - (fair < count)) for count in counts]
        assert bias == pytest.approx(expected)
    assert log[-1]["expert_bias"] == log[-2]["expert_bias"], "the rate is zero at the end"


@pytest.mark.parametrize("balance", ["aux", "none"])
def test_without_loss_less_balancing_the_bias_stays_zero(
    balance: str, train: Callable[..., int], read_log: Callable[[str], Log]
) -> None:
    assert train("--run=r", "--steps=4", f"--balance={balance}") == 0
    head, *rest = read_log("r")
    assert head["balance"]["method"] == balance
    assert head["balance"]["aux_weight"] == (0.01 if balance == "aux" else 0)
    for record in steps(rest):
        assert record["expert_bias"] == [[0.0] * 8] * 2
        assert set(record["losses"]) == ({"aux"} if balance == "aux" else set())
        assert all(0.9 < value < 4 for value in record["losses"].values())


def test_counts_every_leaves_the_matrices_out_of_the_other_lines_and_check_still_judges(
    train: Callable[..., int],
    read_log: Callable[[str], Log],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    common = ("--steps=61", "--force-collapse=2@1", "--eval-every=100")
    assert train("--run=all", *common) == 0
    assert train("--run=few", "--counts-every=10", *common) == 0
    whole, few = steps(read_log("all")), steps(read_log("few"))
    matrices = ("expert_bias", "tokens_per_expert")
    for key in matrices:
        assert [r["step"] for r in few if key in r] == [1, 10, 20, 30, 40, 50, 60]
    for one, other in zip(whole, few, strict=True):
        assert one["router"] == other["router"], "the summaries are in every line"
        assert all(other.get(key, one[key]) == one[key] for key in matrices)
    with pytest.raises(SystemExit) as ended:
        microscope(["check", str(tmp_path / "logs" / "few")])
    assert ended.value.code == 2
    assert "CRIT COLLAPSE: Router collapse in L2 since step 1" in capsys.readouterr().out


def test_the_log_is_never_behind_its_checkpoint(
    trainer: ModuleType,
    train: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    read_log: Callable[[str], Log],
) -> None:
    seen = []
    real = trainer.Checkpoints.save

    def save(self: Any, name: str, step: int, write: Any) -> Path:
        seen.append((name, step, read_log("r")[-1]["step"]))
        return real(self, name, step, write)

    monkeypatch.setattr(trainer.Checkpoints, "save", save)
    assert train("--run=r", "--steps=9", "--save-every=2", "--eval-every=3") == 0
    assert len(seen) > 5
    assert all(logged == step for _, step, logged in seen)


def test_a_broken_recorder_costs_a_warning_and_not_the_run(
    trainer: ModuleType,
    train: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("disk on fire")

    monkeypatch.setattr(trainer.RunRecorder, "record_step", fail)
    assert train("--run=r", "--steps=3") == 0
    narration = capsys.readouterr().err
    assert narration.count("training continues: RuntimeError('disk on fire')") == 1
    assert read_checkpoint(tmp_path / "ck" / "r").step == 3


def test_a_gradient_that_is_not_finite_moves_nothing_and_too_many_end_the_run(
    trainer: ModuleType,
    train: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    read_log: Callable[[str], Log],
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = trainer.gradient_squares
    monkeypatch.setattr(trainer, "gradient_squares", lambda *given: real(*given) * math.nan)
    assert train("--run=r", "--steps=30") == 1
    assert "not finite in 20 consecutive steps (the last is step 20)" in capsys.readouterr().err
    log = read_log("r")
    assert len(steps(log)) == 20
    assert all(r["expert_bias"] == [[0.0] * 8] * 2 for r in steps(log))
    assert log[-1]["reason"] == "failed"


def test_a_checkpoint_generates_text(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--run=r", "--steps=2") == 0
    capsys.readouterr()
    command = [str(tmp_path / "ck" / "r" / "best"), "--prompt=the ", "--max-new-tokens=9"]
    texts = []
    for _ in range(2):
        assert run_command(generate_module.app, command) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert texts[0].startswith("the ")
    assert len(texts[0]) == len("the ") + 9 + 1


def test_multi_token_prediction_is_trained_logged_balanced_and_drafts_the_same_text(
    train: Callable[..., int],
    read_log: Callable[[str], Log],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train("--run=r", "--steps=40", "--mtp", "--lr=0.01") == 0
    head, *rest = read_log("r")
    assert head["model"]["layer_names"] == ["L1", "L2", "mtp.0"]
    losses = [record["losses"]["mtp"] for record in steps(rest)]
    assert losses[-1] < losses[0] - 0.3
    assert [sum(row) for row in steps(rest)[-1]["tokens_per_expert"]] == [4 * 32 * 2] * 3
    assert any(steps(rest)[-1]["expert_bias"][2])
    capsys.readouterr()
    command = [str(tmp_path / "ck" / "r" / "best"), "--prompt=the ", "--max-new-tokens=60"]
    texts, narration = [], []
    for flags in ([], ["--draft"]):
        assert run_command(generate_module.app, [*command, *flags]) == 0
        captured = capsys.readouterr()
        texts.append(captured.out)
        narration.append(captured.err)
    assert texts[0] == texts[1]
    assert "60 tokens in" in narration[0]
    assert "1.00 tokens a pass" in narration[0]
    assert "1.00 tokens a pass" not in narration[1], "some guesses are right by now"


def test_capacity_noise_and_z_loss_reach_model_and_log(
    train: Callable[..., int], read_log: Callable[[str], Log]
) -> None:
    flags = ["--capacity-factor=0.5", "--drop-policy=weight", "--router-noise=0.1"]
    assert train("--run=r", "--steps=3", *flags, "--z-loss-weight=0.001") == 0
    head, *rest = read_log("r")
    assert head["model"]["capacity_factor"] == 0.5
    assert head["balance"]["z_loss_weight"] == 0.001
    fields = head["config"]["model"]
    assert (fields["drop_policy"], fields["router_jitter_noise"]) == ("weight", 0.1)
    for record in steps(rest):
        assert all(0.45 < rate < 0.9 for rate in record["router"]["drop_rate"])
        assert record["losses"]["z_loss"] > 0


def test_description_of_a_checkpoint_is_plain_json(
    train: Callable[..., int], tmp_path: Path
) -> None:
    assert train("--run=r", "--steps=2") == 0
    plain = json.loads((tmp_path / "ck" / "r" / "latest" / "checkpoint.json").read_text("utf-8"))
    assert plain["step"] == plain["options"]["steps"] == 2
    assert plain["tokenizer"]["kind"] == "char"
