"""A resumed run is identical to one that never stopped."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from moe_model import TRAINING_STATE, read_checkpoint
from tests.forked import Program
from tests.training.story import KilledError, Log, before_step, die, from_step, story

Train = Callable[..., int]
ReadLog = Callable[[str], Log]

EVERYTHING = (
    "--steps=14", "--save-every=3", "--eval-every=4", "--grad-accum=2", "--batch-size=2", "--mtp",
    "--router-noise=0.1", "--capacity-factor=1.0", "--z-loss-weight=0.001",
)  # fmt: skip
"""All that has a state or draws random numbers."""


def killed_at(
    trainer: ModuleType, monkeypatch: pytest.MonkeyPatch, step: int, where: str
) -> Callable[[], None]:
    """Let the trainer die in ``step``: before it, or in the middle of writing its checkpoint."""

    def dying_save(name: str, run: Any, *rest: Any) -> Any:
        if run.progress.step == step:
            (rest[0].folder / f".step-{step:08d}.partial").mkdir()
            die()
        return real_save(name, run, *rest)

    real_save = trainer.save_checkpoint
    if where == "step":
        before_step(trainer, monkeypatch, step, die)
    else:
        monkeypatch.setattr(trainer, "save_checkpoint", dying_save)
    return monkeypatch.undo


STOPS = [(2, "step", 1), (4, "step", 4), (6, "save", 5), (8, "save", 7), (14, "step", 13)]
"""Where a run is killed, and the step that it resumes from."""


@pytest.mark.parametrize(
    ("dtype", "stops"), [("fp32", STOPS), ("bf16", STOPS[1:3]), ("fp16", STOPS[1:3])]
)
def test_a_resumed_run_is_the_run_that_never_stopped(
    dtype: str,
    stops: list[tuple[int, str, int]],
    trainer: ModuleType,
    train: Train,
    read_log: ReadLog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before the first checkpoint, after latest, after a newer best, inside a checkpoint."""
    flags = (*EVERYTHING, f"--dtype={dtype}")
    assert train("--run=whole", *flags) == 0
    for step, where, resumes_at in stops:
        run = f"cut-{step}"
        revive = killed_at(trainer, monkeypatch, step, where)
        with pytest.raises(KilledError):
            train(f"--run={run}", *flags)
        revive()
        assert train(f"--run={run}", *flags, "--resume=auto") == 0

        log = read_log(run)
        heads = [record for record in log if record["kind"] == "run"]
        assert [head["resumed_at_step"] for head in heads] == [None, resumes_at]
        resumed = story(log)
        assert resumed[0]["step"] == resumes_at
        assert from_step(resumed, 0) == from_step(story(read_log("whole")), resumes_at)
        ends = [read_checkpoint(tmp_path / "ck" / r / "latest").folder for r in ("whole", run)]
        for name in ("model.safetensors", TRAINING_STATE, "judgement.msgpack"):
            assert (ends[0] / name).read_bytes() == (ends[1] / name).read_bytes(), name
        assert not list((tmp_path / "ck" / run).glob(".step-*")), "what the dead left is gone"


def test_kill_9_and_resume_give_the_same_log(
    start: Callable[..., Program], read_log: ReadLog, tmp_path: Path
) -> None:
    flags = ("--steps=60", "--save-every=1", "--eval-every=3", "--force-collapse=2@5")
    whole = start("--run=whole", *flags)
    killed = start("--run=killed", *flags)
    log = tmp_path / "logs" / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not log.exists() or log.read_bytes().count(b"\n") < 25:
        assert killed.poll() is None, killed.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    killed.kill()
    killed.communicate()
    resumed = start("--run=killed", *flags, "--resume=auto")
    for process in (resumed, whole):
        _, narration = process.communicate(timeout=120)
        assert process.returncode == 0, narration
    rows = story(read_log("killed"))
    first = rows[0]["step"]
    assert first > 5
    assert from_step(rows, 0) == from_step(story(read_log("whole")), first)
    assert any(row.get("event") == "alert" for row in rows), "the collapse is told after a resume"


def test_a_damaged_latest_gives_way_to_previous_and_says_so(
    train: Train, read_log: ReadLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--run=r", "--steps=6", "--save-every=2", "--eval-every=100") == 0
    latest = (tmp_path / "ck" / "r" / "latest").resolve()
    content = bytearray((latest / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (latest / "model.safetensors").write_bytes(content)
    capsys.readouterr()
    assert train("--run=r", "--resume=auto", "--steps=6") == 0
    narration = capsys.readouterr().err
    assert f"latest is damaged, trying {tmp_path / 'ck' / 'r' / 'previous'}" in narration
    assert "model.safetensors is damaged" in narration
    assert "resumes after step 4" in narration
    rows = story(read_log("r"))
    assert [row["step"] for row in rows if row["kind"] == "step"] == [5, 6]
    links = {name: read_checkpoint(tmp_path / "ck" / "r" / name) for name in ("latest", "previous")}
    assert links["latest"].step == 6
    assert links["previous"].step == 4, "sound, and not the damaged one that was called latest"


def test_where_every_checkpoint_is_damaged_nothing_is_overwritten(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--run=r", "--steps=4", "--save-every=2", "--eval-every=100") == 0
    for folder in (tmp_path / "ck" / "r").glob("step-*"):
        (folder / TRAINING_STATE).write_bytes(b"")
    assert train("--run=r", "--resume=auto", "--steps=6") == 1
    assert "training.safetensors is damaged (0 bytes" in capsys.readouterr().err
    assert len(list((tmp_path / "ck" / "r").glob("step-*"))) == 2


def test_options_that_are_not_given_are_those_of_the_checkpoint(
    train: Train, trainer: ModuleType, read_log: ReadLog, tmp_path: Path
) -> None:
    flags = ["--steps=4", "--save-every=2", "--lr=0.0123", "--seed=7", "--mtp"]
    assert train("--run=r", *flags, "--on-collapse=checkpoint") == 0
    # Neither data, shape nor folders are said again, as a person would do it.
    command = ["--resume", str(tmp_path / "ck" / "r"), "--steps", "6"]
    assert trainer.run_command(trainer.app, command) == 0
    first, second = [record for record in read_log("r") if record["kind"] == "run"]
    assert first["config"]["mtp"] is second["config"]["mtp"] is True
    changed = {key for key, value in first["config"].items() if second["config"][key] != value}
    assert changed == {"steps", "resume"}
    assert [row["step"] for row in story(read_log("r")) if row["kind"] == "step"] == [5, 6]


def test_another_balance_method_does_not_inherit_what_the_former_one_needed(
    train: Train, read_log: ReadLog, tmp_path: Path
) -> None:
    assert train("--run=r", "--steps=2", "--bias-update-rate=0.5") == 0
    resume = f"--resume={tmp_path / 'ck' / 'r'}"
    assert train("--run=other", resume, "--steps=4", "--balance=aux") == 0
    head = read_log("other")[0]
    assert head["balance"] == head["balance"] | {"method": "aux", "bias_update_rate": 0.0}
    assert head["resumed_at_step"] == 3


def test_a_run_that_is_complete_is_left_alone(
    train: Train, read_log: ReadLog, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--run=r", "--steps=2") == 0
    before = read_log("r")
    assert train("--run=r", "--steps=2", "--resume=auto") == 0
    assert "already has all 2 steps; raise --steps" in capsys.readouterr().err
    assert read_log("r") == before


def test_resume_auto_starts_a_new_run_without_a_checkpoint(train: Train, read_log: ReadLog) -> None:
    assert train("--run=r", "--steps=2", "--resume=auto") == 0
    assert read_log("r")[0]["resumed_at_step"] is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.hidden_size=64"], "--model.hidden_size 64: the weights in "),
        (["--tokenizer=bpe"], "was trained with --tokenizer char: omit it"),
        (["--preset=small"], "was trained with --preset tiny: omit it"),
    ],
)
def test_what_the_weights_do_not_fit_is_a_usage_error(
    flags: list[str], message: str, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--run=r", "--steps=2") == 0
    assert train("--run=r", "--resume=auto", "--steps=4", *flags) == 64
    assert message in capsys.readouterr().err


def test_a_text_that_the_tokenizer_of_the_checkpoint_cannot_read_is_a_usage_error(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--run=r", "--steps=2") == 0
    (tmp_path / "other.txt").write_text("ÄÖÜ" * 1000, "utf-8")
    assert train("--run=r", "--resume=auto", f"--data={tmp_path / 'other.txt'}") == 64
    assert "characters 'ÄÖÜ' do not occur in the training text" in capsys.readouterr().err


def test_another_text_is_read_from_its_beginning_and_that_is_said(
    train: Train, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--run=r", "--steps=2") == 0
    (tmp_path / "more.txt").write_text(text_file.read_text("utf-8") * 2, "utf-8")
    flags = (f"--data={tmp_path / 'more.txt'}", "--steps=4")
    assert train("--run=r", "--resume=auto", *flags) == 0
    assert "the text is read from its beginning" in capsys.readouterr().err


def test_an_imported_model_is_trained_from_its_weights(
    train: Train, read_log: ReadLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--run=r", "--steps=2", "--eval-every=2") == 0
    theirs = tmp_path / "theirs"
    shutil.copytree((tmp_path / "ck" / "r" / "latest").resolve(), theirs)
    for name in (TRAINING_STATE, "judgement.msgpack"):
        (theirs / name).unlink()
    description = json.loads((theirs / "checkpoint.json").read_text("utf-8"))
    keep = {"format", "format_version", "step", "model", "tokenizer"}
    files = {"model.safetensors": description["files"]["model.safetensors"]}
    description = {k: v for k, v in description.items() if k in keep} | {"files": files}
    description["published"] = {"aux_loss_alpha": 0.001}
    (theirs / "checkpoint.json").write_text(json.dumps(description), "utf-8")

    assert train("--run=new", f"--resume={theirs}", "--steps=3", "--lr=1e-9") == 0
    assert "has weights only (an imported or upcycled model)" in capsys.readouterr().err
    rows = [row for row in read_log("new") if row["kind"] == "step"]
    assert [row["step"] for row in rows] == [1, 2, 3]
    saved = read_checkpoint(tmp_path / "ck" / "new").description
    assert saved["published"] == {"aux_loss_alpha": 0.001}
    ours, before = (
        read_checkpoint(path).load_model().state_dict()
        for path in (tmp_path / "ck" / "new", theirs)
    )
    torch.testing.assert_close(ours["embed_tokens.weight"], before["embed_tokens.weight"])


def test_routers_without_a_bias_are_not_given_one(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in DeepSeek-V2: what it would learn could not be exported."""
    softmax = ("--model.topk_method=greedy", "--model.scoring_func=softmax", "--steps=2")
    assert train("--run=r", *softmax) == 64
    assert "topk_method=greedy has no bias: use --balance aux" in capsys.readouterr().err
    assert train("--run=r", *softmax, "--balance=aux") == 0
    model = read_checkpoint(tmp_path / "ck" / "r").load_model()
    assert not any(router.expert_bias.any() for router in model.routers)


def test_the_command_line_overrides_options_of_a_file(
    train: Train, read_log: ReadLog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        'run = "r"\nsteps = 3\nlr = 0.5\nmtp = true\non-collapse = "stop"\nbatch_size = 2\n'
        "[model]\nn_routed_experts = 4\n",
        "utf-8",
    )
    flags = [f"--config={file}", "--lr=0.25"]
    assert train(*flags) == 0
    config = read_log("r")[0]["config"]
    wanted = {"steps": 3, "lr": 0.25, "mtp": True, "on_collapse": "stop", "batch_size": 4}
    assert {key: config[key] for key in wanted} == wanted
    assert config["model"]["n_routed_experts"] == 4
    file.write_text("stepps = 3\n", "utf-8")
    assert train(*flags) == 64
    assert "stepps" in capsys.readouterr().err
    file.write_text("steps = [\n", "utf-8")
    assert train(*flags) == 64
