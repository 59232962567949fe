"""A resumed run is identical to one that never stopped."""

import json
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from moe_model import TRAINING_STATE, UsageError, read_checkpoint
from moe_model.training import step
from moe_model.training.resolving import resolve
from moe_model.training.setup import prepare
from moe_model.training.world import World
from tests.forked import ROOT, Program
from tests.training.conftest import SHORT, GetTrained
from tests.training.story import ReadLog, Train, flip_a_bit, from_step, steps, story, wait_until

EVERYTHING = (
    "--steps=8", "--save-every=3", "--eval-every=4", "--grad-accum=2", "--batch-size=2", "--mtp",
    "--router-noise=0.1", "--capacity-factor=1.0", "--z-loss-weight=0.001", "--warmup=2",
    "--min-lr=0.2", "--router-lr=0.5", "--weight-decay=0.2", "--clip=0.5", "--document-mask",
    f"--data={ROOT}/tests/texts:3 {ROOT}/tests/texts/code.txt",
)  # fmt: skip
"""All that has a state or draws random numbers."""


@pytest.mark.parametrize(
    ("flag", "step", "where", "resumes_at"),
    [
        ("--dtype=fp32", 2, "step", 1),  # before the first checkpoint
        ("--dtype=fp32", 6, "save", 5),  # inside a checkpoint, the best before it is newer
        ("--dtype=fp32", 8, "step", 7),
        ("--dtype=bf16", 4, "step", 4),
        ("--dtype=fp16", 6, "save", 5),
        ("--optimizer=muon --keep=1", 5, "step", 5),
        ("--lr-schedule=wsd --balance=aux", 8, "step", 7),
    ],
)
def test_a_resumed_run_is_the_run_that_never_stopped(
    flag: str,
    step: int,
    where: str,
    resumes_at: int,
    trained: GetTrained,
    train: Train,
    train_until: Any,
    read_log: ReadLog,
    tmp_path: Path,
) -> None:
    whole = trained(*EVERYTHING, *flag.split())
    assert whole.code == 0
    train_until(step, "--run=r", *EVERYTHING, *flag.split(), saving=where == "save")
    assert train("--run=r", "--resume=auto", *EVERYTHING, *flag.split()) == 0

    log = read_log("r")
    heads = [record for record in log if record["kind"] == "run"]
    assert [head["resumed_at_step"] for head in heads] == [None, resumes_at]
    assert from_step(story(log), 1)[0]["step"] == resumes_at
    assert from_step(story(log), resumes_at) == from_step(story(whole.log), resumes_at)
    ends = [read_checkpoint(path / "latest") for path in (whole.checkpoints, tmp_path / "ck" / "r")]
    for name in ("model.safetensors", TRAINING_STATE, "judgement.msgpack"):
        one, other = ((end.folder / name).read_bytes() for end in ends)
        assert one == other, name
    for name in ("progress", "data", "loss_scale"):
        one, other = (end.description[name] for end in ends)
        assert one == other, name
    own = tmp_path / "ck" / "r"
    assert not list(own.glob(".step-*")), "what the dead left is gone"
    assert [link.name for link in own.glob("kept-*")] == ["kept-00000008"] * ("keep" in flag)


def test_kill_9_and_resume_give_the_same_log(
    start: Callable[..., Program], trained: GetTrained, read_log: ReadLog, tmp_path: Path
) -> None:
    flags = ("--steps=55", "--save-every=4", "--eval-every=18", "--force-collapse=2@5")
    killed = start("--run=r", *flags)
    log = tmp_path / "logs" / "r" / "metrics.jsonl"
    wait_until(lambda: log.exists() and log.read_bytes().count(b"\n") >= 25, killed)
    killed.kill()
    killed.communicate()
    resumed = start("--run=r", *flags, "--resume=auto")
    whole = story(trained(*flags).log)
    _, narration = resumed.communicate()
    assert resumed.returncode == 0, narration
    rows = story(read_log("r"))
    first = rows[0]["step"]
    assert first > 5
    assert from_step(rows, 0) == from_step(whole, first)
    assert any(row.get("event") == "alert" for row in rows), "the collapse is found after a resume"


def test_a_damaged_latest_gives_way_to_previous_with_a_message(
    copied: GetTrained, train: Train, read_log: ReadLog, capsys: Any
) -> None:
    checkpoints = copied(*SHORT).checkpoints
    flip_a_bit((checkpoints / "latest").resolve() / "model.safetensors")
    assert train("--run=r", "--resume=auto", "--steps=4") == 0
    narration = capsys.readouterr().err
    assert f"latest is damaged, trying {checkpoints / 'previous'}" in narration
    assert "model.safetensors is damaged" in narration
    assert "resumes after step 2" in narration
    assert [row["step"] for row in steps(story(read_log("r")))] == [3, 4]
    assert read_checkpoint(checkpoints / "latest").step == 4
    assert read_checkpoint(checkpoints / "previous").step == 2, "not the damaged one"


def test_where_every_checkpoint_is_damaged_nothing_is_overwritten(
    copied: GetTrained, train: Train, capsys: Any
) -> None:
    checkpoints = copied(*SHORT).checkpoints
    for folder in checkpoints.glob("step-*"):
        (folder / TRAINING_STATE).write_bytes(b"")
    assert train("--run=r", "--resume=auto", "--steps=6") == 1
    assert "training.safetensors is damaged (0 bytes" in capsys.readouterr().err
    assert len(list(checkpoints.glob("step-*"))) == 2


def test_options_that_are_not_given_are_those_of_the_checkpoint(
    train: Train, trainer: ModuleType, read_log: ReadLog, tmp_path: Path
) -> None:
    flags = ["--steps=2", "--save-every=2", "--lr=0.0123", "--seed=7", "--mtp"]
    assert train("--run=r", *flags, "--on-collapse=checkpoint") == 0
    # Neither data, shape nor folders are given again, as a person would do it.
    command = ["--resume", str(tmp_path / "ck" / "r"), "--steps", "3"]
    assert trainer.run_command(trainer.app, command) == 0
    first, second = [record for record in read_log("r") if record["kind"] == "run"]
    assert first["config"]["mtp"] is second["config"]["mtp"] is True
    changed = {key for key, value in first["config"].items() if second["config"][key] != value}
    assert changed == {"steps", "resume"}
    assert [row["step"] for row in steps(story(read_log("r")))] == [3]


def test_another_balance_method_or_schedule_inherits_only_what_it_has_a_use_for(
    trained: GetTrained, train: Train, read_log: ReadLog
) -> None:
    given = ("--min-lr=0", "--bias-update-rate=0.5", "--seq-aux-weight=0.5")
    for run, flags, expected in (
        ("given", given, {"bias_update_rate": 0.0, "min_lr": 0.0, "seq_aux_weight": 0.5}),
        ("default", ("--preset=small", "--tokenizer=char"), {"min_lr": 0.1, "seq_aux_weight": 0.0}),
    ):
        before = trained("--steps=2", *flags).checkpoints
        changed = (f"--resume={before}", "--steps=3", "--balance=aux", "--lr-schedule=wsd")
        assert train(f"--run={run}", *changed) == 0
        head = read_log(run)[0]
        assert head["config"] == head["config"] | {"balance": "aux", "decay": 0.2, **expected}
        assert head["resumed_at_step"] == 3


def rewrite_options(checkpoints: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = checkpoints / "latest" / "checkpoint.json"
    plain = json.loads(path.read_text("utf-8"))
    change(plain["options"])
    del plain["sha256"]
    path.write_text(json.dumps(plain), "utf-8")


def test_a_run_from_before_an_option_continues_as_it_began(
    copied: GetTrained, train: Any, read_log: ReadLog
) -> None:
    checkpoints = copied(*SHORT, "--balance=aux", "--balance-scope=pass").checkpoints
    rewrite_options(checkpoints, lambda options: options.pop("balance_scope"))
    assert train("--run=r", "--resume=auto", "--steps=5", "--balance=aux") == 0
    log = read_log("r")
    assert [h["config"]["balance_scope"] for h in log if h["kind"] == "run"] == ["pass"] * 2
    assert steps(log)[0]["losses"].get("aux") != pytest.approx(1.0, abs=1e-6), "of its own passes"


def test_experts_that_adamw_trained_beside_muon_are_refused(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(step, "all_experts", lambda model: [])  # as the option did
        assert train("--run=r", "--steps=2", "--optimizer=muon") == 0
    assert train("--run=r", "--resume=auto", "--steps=5") == 64
    assert "--optimizer muon and AdamW for the experts" in capsys.readouterr().err


def test_options_that_are_gone_and_were_off_are_ignored(
    copied: GetTrained, train: Any, read_log: ReadLog
) -> None:
    checkpoints = copied(*SHORT, "--optimizer=muon").checkpoints
    gone = {"adamw_experts": False, "torch_trace": "1:2"}
    rewrite_options(checkpoints, lambda options: options.update(gone))
    assert train("--run=r", "--resume=auto", "--steps=5") == 0
    assert read_log("r")[-1]["reason"] == "finished"


def test_a_switch_can_be_turned_off_when_a_run_is_resumed(train: Train, read_log: ReadLog) -> None:
    assert train("--run=r", "--steps=1", "--activation-checkpointing") == 0
    assert train("--run=r", "--resume=auto", "--steps=2") == 0
    assert train("--run=r", "--resume=auto", "--steps=3", "--no-activation-checkpointing") == 0
    heads = [record for record in read_log("r") if record["kind"] == "run"]
    assert [head["config"]["activation_checkpointing"] for head in heads] == [True, True, False]


def test_a_run_that_is_complete_is_left_alone(
    copied: GetTrained, train: Train, read_log: ReadLog, capsys: Any
) -> None:
    before = copied(*SHORT).log
    assert train("--run=r", "--steps=4", "--resume=auto") == 0
    assert "already has all 4 steps; raise --steps" in capsys.readouterr().err
    assert read_log("r") == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model.hidden_size=64"], "--model.hidden_size 64: the weights in "),
        (["--mtp"], "--model.num_nextn_predict_layers 1: the weights in "),
        (["--tokenizer=bpe"], "was trained with --tokenizer char: omit it"),
        (["--preset=small"], "was trained with --preset tiny: omit it"),
        (["--optimizer=muon"], "was trained with --optimizer adamw: omit it"),
        (["--data=other.txt"], "characters 'ÄÖÜ' do not occur in the training text"),
    ],
)
def test_what_the_weights_do_not_fit_is_a_usage_error(
    flags: list[str], words: str, trained: GetTrained, train: Train, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "other.txt").write_text("ÄÖÜ" * 1000, "utf-8")
    resume = f"--resume={trained(*SHORT).checkpoints}"
    with chdir(tmp_path):
        assert train("--run=fork", resume, "--steps=6", *flags) == 64
    assert words in capsys.readouterr().err


def test_another_text_is_read_from_its_beginning_with_a_message(
    trained: GetTrained, train: Train, text_file: Path, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "more.txt").write_text(text_file.read_text("utf-8") * 2, "utf-8")
    more = (f"--resume={trained(*SHORT).checkpoints}", f"--data={tmp_path / 'more.txt'}")
    assert train("--run=fork", *more, "--steps=5", "--batch-size=2") == 0
    narration = capsys.readouterr().err
    assert "the text is read from its beginning" in narration
    drawn = read_checkpoint(tmp_path / "ck" / "fork").description["data"]["sequences"]
    assert drawn == 2


def test_the_command_line_overrides_options_of_a_file(
    train: Train, read_log: ReadLog, tmp_path: Path, capsys: Any
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        'run = "r"\nsteps = 2\nlr = 0.5\nmtp = true\non-collapse = "stop"\nbatch_size = 2\n'
        "[model]\nn_routed_experts = 4\n",
        "utf-8",
    )
    flags = [f"--config={file}", "--lr=0.25"]
    assert train(*flags) == 0
    config = read_log("r")[0]["config"]
    # The batch size is also on the command line of these tests.
    wanted = {"steps": 2, "lr": 0.25, "mtp": True, "on_collapse": "stop", "batch_size": 4}
    assert {key: config[key] for key in wanted} == wanted
    assert config["model"]["n_routed_experts"] == 4
    for wrong, message in (("stepps = 3\n", "stepps"), ("steps = [\n", "TOMLDecodeError")):
        file.write_text(wrong, "utf-8")
        assert train(*flags) == 64
        assert message in capsys.readouterr().err


def resumed_in(folder: Path, trainer: ModuleType, *options: str) -> int:
    """The exit code of ``--resume auto`` for ``r``, with no option of the run given again."""
    with chdir(folder):
        return trainer.run_command(trainer.app, ["--run=r", "--resume=auto", *options])


@pytest.mark.parametrize("place", ["checkpoints", "home"])
def test_a_moved_folder_of_checkpoints_is_resumed_where_it_is(
    place: str, train: Train, trainer: ModuleType, read_log: ReadLog, tmp_path: Path
) -> None:
    assert train("--run=r", *SHORT) == 0
    (tmp_path / "ck").rename(tmp_path / place)
    given = [] if place == "checkpoints" else [f"--checkpoint-dir={place}"]
    own = [*given, f"--log-dir={tmp_path / 'logs'}", "--steps=5"]
    assert resumed_in(tmp_path, trainer, *own) == 0
    assert [row["step"] for row in steps(story(read_log("r")))] == [5]
    assert read_checkpoint(tmp_path / place / "r").step == 5
    assert not (tmp_path / "ck").exists()


def test_a_log_whose_checkpoints_are_elsewhere_is_not_continued_at_step_1(
    train: Train, trainer: ModuleType, read_log: ReadLog, tmp_path: Path, capsys: Any
) -> None:
    assert train("--run=r", "--steps=1", "--save-every=1") == 0
    before = read_log("r")
    assert resumed_in(tmp_path, trainer, "--log-dir=logs") == 64
    assert f"{tmp_path / 'ck' / 'r'} has, and belongs to logs/r" in capsys.readouterr().err
    assert train("--run=r", "--resume=auto", "--steps=2") == 0, "of their own folder it is"
    assert read_log("r")[: len(before)] == before
    (tmp_path / "ck").rename(tmp_path / "away")
    before = read_log("r")
    assert train("--run=r", "--resume=auto", "--model.hidden_size=48") == 64
    assert "of another model: hidden_size was 32, now it is 48: add" in capsys.readouterr().err
    assert read_log("r") == before
    assert not (tmp_path / "ck").exists()


def test_only_rank_0_which_writes_the_log_decides_by_it(
    train_until: Any, trainer: ModuleType, arguments: Any
) -> None:
    train_until(2, "--run=r", "--steps=3")
    words = arguments("--run=r", "--resume=auto", "--model.hidden_size=48")
    options = resolve(trainer.app.parse_args(words)[1].args[0])
    with pytest.raises(UsageError, match="of another model: hidden_size"):
        prepare(options, World())
    assert prepare(options, World(rank=1)).progress.step == 0


@pytest.mark.parametrize("header", ["{", "[]", '{"kind":"run"', '{"kind":"run","config":[]}', None])
def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(
    header: str | None, train: Train, train_until: Any, read_log: ReadLog, tmp_path: Path
) -> None:
    """Whatever its log begins with, if that has no model and no folder."""
    train_until(2, "--run=r", "--steps=3")
    log = tmp_path / "logs" / "r" / "metrics.jsonl"
    if header is not None:
        log.write_text(header + "\n", "utf-8")
    assert train("--run=r", "--resume=auto", "--steps=3") == 0
    lines = log.read_text("utf-8").splitlines()
    assert any('"step":3' in line for line in lines)
