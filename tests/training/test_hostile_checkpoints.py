"""A ``checkpoint.json`` that was damaged, or written by an attacker.

Whatever it says, a run goes on from the checkpoint before it, or ends with one line: no traceback,
no loop without end, nothing that a terminal would obey.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from moe_model import MOST_BYTES, CheckpointError, read_checkpoint, read_plain_description
from moe_model.training import Progress

Train = Callable[..., int]
Resume = Callable[..., tuple[int, list[str]]]

ESCAPE = "\x1b[31mred"
GIANT = 2**31 - 1
HUGE = "1e999"  # stands for itself, unquoted: JSON may say it, and Python makes it infinity
YARN = {"factor": 4.0, "original_max_position_embeddings": 8}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept") / "ck"


@pytest.fixture
def latest(train: Train, kept: Path, tmp_path: Path) -> Path:
    """The newest checkpoint (step 4) of a run that has a previous one (step 2); trained once."""
    if not kept.exists():
        assert train("--run=r", "--steps=4", "--save-every=2", "--eval-every=100") == 0
        shutil.copytree(tmp_path / "ck", kept, symlinks=True)
        shutil.rmtree(tmp_path / "logs")
    else:
        shutil.copytree(kept, tmp_path / "ck", symlinks=True)
    return (tmp_path / "ck" / "r" / "latest").resolve()


@pytest.fixture
def resume(train: Train, capsys: pytest.CaptureFixture[str], latest: Path) -> Resume:
    """Go on; the exit code, and what was said."""

    def run(*more: str) -> tuple[int, list[str]]:
        capsys.readouterr()
        code = train("--run=r", "--resume=auto", *more)
        narration = capsys.readouterr().err
        assert "Traceback" not in narration
        assert all(line.isprintable() and len(line) < 1000 for line in narration.splitlines()), (
            narration
        )
        return code, narration.splitlines()

    return run


def edit(folder: Path, place: str, value: object, *, seal: bool = False) -> None:
    """Let ``checkpoint.json`` say ``value`` at ``place``, such as model/vocab_size.

    Without a ``sha256``, as a stranger would write it; ``seal`` leaves the former one.
    """
    path = folder / "checkpoint.json"
    description = json.loads(path.read_text("utf-8"))
    if not seal:
        del description["sha256"]
    inner = description
    *outer, last = place.split("/")
    for name in outer:
        inner = inner[name]
    inner[last] = value
    path.write_text(json.dumps(description).replace(f'"{HUGE}"', HUGE), "utf-8")


DAMAGED: dict[str, bytes] = {
    "empty": b"",
    "no text": b"\xff\xfe{}",
    "cut short": b'{"format": "moe-microscope checkpoint", "form',
    "of another kind": b"null",
    "no number": b"NaN",
    "deep": b"[" * 200_000,
    "deep objects": b'{"a":' * 200_000,
    "deep and whole": b"[" * 200_000 + b"]" * 200_000,
    "many digits": b"1" * 5000,
    "large": b" " * (MOST_BYTES + 1),
}
HOSTILE: list[tuple[str, object]] = [
    *(("step", step) for step in (-5, True, 4.0, "4", None, HUGE, 10**400, [])),
    *(("format_version", version) for version in (ESCAPE, True, 2, None)),
    *(("format", other) for other in (ESCAPE, [], None)),
    *(("model", model) for model in ([], None, ESCAPE, {ESCAPE: 1}, {})),
    *(("model/vocab_size", size) for size in (None, -1, HUGE, 40.0, [])),
    *(("model/hidden_size", size) for size in ("32", True, 10**30, GIANT, 64, ESCAPE)),
    *(("model/num_hidden_layers", layers) for layers in (GIANT, 4)),
    *(("model/n_routed_experts", experts) for experts in (GIANT, 16)),
    *(("model/num_nextn_predict_layers", layers) for layers in (GIANT, 1)),
    *(("model/rope_scaling", it) for it in ("x", [1], {}, {**YARN, ESCAPE: 1}, {**YARN, "x": 1})),
    ("model/rope_scaling", {**YARN, "beta_fast": 1e300}),
    ("model/rope_scaling", {**YARN, "factor": "4"}),
    ("model/rms_norm_eps", "1e-6"),
    ("model/norm_topk_prob", 1),
    ("model/scoring_func", ESCAPE),
    ("model/drop_policy", ["position"]),
    (f"model/{ESCAPE}", 1),
    *(("tokenizer", it) for it in (ESCAPE, [], {}, {"kind": []}, {"kind": ESCAPE}, 3)),
    *(("tokenizer/vocabulary", it) for it in (None, ["a", "b"], {"a": 0}, "aa", "", "a\ud800")),
    ("tokenizer", {"kind": "huggingface", "files": ["../../secret"]}),
    ("tokenizer", {"kind": "huggingface", "files": [[]]}),
    *(("files", files) for files in ([], {}, None, {"model.safetensors": []})),
    *((f"files/{n}", {"bytes": 1, "sha256": ""}) for n in ("a\0b", ".", "..", ESCAPE, "x" * 999)),
    ("files/model.safetensors", {"bytes": ESCAPE, "sha256": None}),
    ("progress/tokens", HUGE),
    ("data/sequences", HUGE),
    ("sha256", ESCAPE),
]
LOST_COUNT: list[tuple[str, object]] = [
    ("progress", None),
    *(("progress/tokens", tokens) for tokens in (-1, True, "9", 10**400)),
    *(("progress/bad_steps", steps) for steps in (-1, 0.5)),
    *(("progress/loss", loss) for loss in (-1.0, "2", False)),
    *(("progress/collapse_index", indices) for indices in ({}, [2], ["x"], "xx")),
    *(("data", data) for data in (None, [], {})),
    *(("data/sequences", drawn) for drawn in (-7, None, [])),
]


def named(value: object) -> str:
    return ascii(value)[:30].replace("\\", "")


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_file_that_says_nothing_gives_way_to_previous_or_ends_in_one_line(
    content: bytes, latest: Path, resume: Resume
) -> None:
    (latest / "checkpoint.json").write_bytes(content)
    assert_only_previous_counts(latest, resume)


@pytest.mark.parametrize(("place", "value"), HOSTILE, ids=named)
def test_a_value_that_cannot_be_gives_way_to_previous_or_ends_in_one_line(
    place: str, value: object, latest: Path, resume: Resume
) -> None:
    edit(latest, place, value)
    assert_only_previous_counts(latest, resume)


def assert_only_previous_counts(latest: Path, resume: Resume) -> None:
    """First beside a sound ``previous`` (whose two steps are all that is asked for), then alone."""
    code, narration = resume("--steps=2")
    assert code == 0
    assert len(narration) == 2, narration
    assert f"latest is damaged, trying {latest.parent / 'previous'}: {latest}" in narration[0]
    assert "already has all 2 steps" in narration[1]
    (latest.parent / "previous").unlink()
    code, narration = resume("--steps=6")
    assert code == 1
    assert len(narration) == 1, narration
    assert narration[0].startswith(f"train.py: r failed: {latest}"), narration


@pytest.mark.parametrize(("place", "value"), LOST_COUNT, ids=named)
def test_a_count_that_cannot_be_ends_in_one_line(
    place: str, value: object, latest: Path, resume: Resume
) -> None:
    edit(latest, place, value)
    (latest.parent / "previous").unlink()
    code, narration = resume("--steps=6")
    assert (code, len(narration)) == (1, 1), narration
    assert narration[0].startswith(f"train.py: r failed: {latest}"), narration


@pytest.mark.parametrize(
    ("place", "value"),
    [("step", 2), ("data/sequences", 3), ("options/lr", 0.5), ("model/rms_norm_eps", 1e-5)],
)
def test_a_value_that_could_be_does_not_change_unnoticed(
    place: str, value: object, latest: Path, resume: Resume
) -> None:
    edit(latest, place, value, seal=True)
    code, narration = resume("--steps=2")
    assert code == 0
    assert "it is damaged: its checksum does not match" in narration[0]


def test_laid_out_anew_or_without_its_checksum_it_says_the_same(latest: Path) -> None:
    before = read_checkpoint(latest).description
    path = latest / "checkpoint.json"
    path.write_text(json.dumps(dict(reversed(before.items())), indent=7), "utf-8")
    assert read_checkpoint(latest).description == before
    del before["sha256"]
    path.write_text(json.dumps(before), "utf-8")
    assert read_checkpoint(latest).description == before


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
@pytest.mark.parametrize("name", ["checkpoint.json", "model.safetensors", "training.safetensors"])
def test_a_pipe_is_not_waited_for(
    name: str, make: Callable[[Path], None], latest: Path, resume: Resume
) -> None:
    (latest / name).unlink()
    make(latest / name)
    code, narration = resume("--steps=2")
    assert (code, len(narration)) == (0, 2), narration
    with pytest.raises(CheckpointError):
        read_checkpoint(latest)
    if name == "checkpoint.json":
        with pytest.raises(CheckpointError, match="it is not a file"):
            read_plain_description(latest)


def test_what_a_run_says_of_itself_it_believes() -> None:
    known = Progress(step=3, loss=2, validation_loss=0.0, bad_steps=2, collapse_index=[None, 1, 0])
    saved = json.loads(json.dumps(known.to_dict()))
    assert Progress.from_dict(saved, 3).to_dict() == known.to_dict()
    fresh = Progress()
    assert Progress.from_dict(fresh.to_dict(), 0).best_loss == fresh.best_loss
