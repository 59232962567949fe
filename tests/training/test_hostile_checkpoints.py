"""A ``checkpoint.json`` that was damaged, or written by an attacker.

Whatever it holds, a run resumes from the checkpoint before it, or ends with one line: no traceback,
no loop without end, nothing that a terminal would obey.
"""

import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file, save_file

from moe_model import (
    TRAINING_STATE,
    WEIGHTS,
    CheckpointError,
    LanguageModel,
    read_checkpoint,
    read_plain_description,
)
from moe_model.config import YarnScaling
from moe_model.store import MOST_BYTES, file_facts
from moe_model.training.checkpoint import described, find_checkpoint
from moe_model.training.options import Options
from moe_model.training.run import Progress
from moe_model.training.world import World
from tests.model.conftest import make_config, write_checkpoint
from tests.training.conftest import SHORT, GetTrained
from tests.training.story import HUGE, Capsys, Train, edit

ESCAPE = "\x1b[31mred"
GIANT = 2**31 - 1
YARN = {"factor": 4.0, "original_max_position_embeddings": 8}


@pytest.fixture
def latest(copied: GetTrained) -> Path:
    """The newest checkpoint (step 4) of a run that has a previous one (step 2)."""
    return (copied(*SHORT).checkpoints / "latest").resolve()


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
    ("tokenizer/vocabulary", "".join(map(chr, range(0x4E00, 0x4F00)))),  # more than the model has
    ("tokenizer", {"kind": "huggingface", "files": ["../../secret"]}),
    ("tokenizer", {"kind": "huggingface", "files": [[]]}),
    *(("files", files) for files in ([], {}, None, {"model.safetensors": []})),
    *((f"files/{n}", {"bytes": 1, "sha256": ""}) for n in ("a\0b", ".", "..", ESCAPE, "x" * 999)),
    ("files/model.safetensors", {"bytes": ESCAPE, "sha256": None}),
    ("progress/tokens", HUGE),
    ("data/sequences", HUGE),
    ("sha256", ESCAPE),
    *(("threads", threads) for threads in (10**9, 0, True, "2")),
    *(("options/warmup", steps) for steps in (-3, HUGE)),
    ("options/decay", 1.5),
    ("options/min_lr", 1.5),
    ("options/lr", -1.0),
    ("progress", None),
    *(("progress/tokens", tokens) for tokens in (-1, True, "9", 10**400)),
    *(("progress/bad_steps", steps) for steps in (-1, 0.5)),
    *(("progress/loss", loss) for loss in (-1.0, "2", False)),
    *(("progress/collapse_index", indices) for indices in ({}, [2], ["x"], "xx")),
    *(("data", data) for data in (None, [], {})),
    *(("data/sequences", drawn) for drawn in (-7, None, [])),
]


def harmless(lines: list[str]) -> list[str]:
    """One or two short lines that a terminal only shows."""
    assert all(line.isprintable() and len(line) < 1000 for line in lines), lines
    return lines


def assert_only_previous_counts(latest: Path, capsys: Capsys) -> None:
    """First beside a sound ``previous``, then alone."""
    folder = latest.parents[1]
    options = Options(resume="auto", run="r", checkpoint_dir=folder, log_dir=folder / "logs")

    def found() -> int | None:
        list(described("auto", "r", folder))  # where options are inherited from
        checkpoint = find_checkpoint(options, World())
        return None if checkpoint is None else checkpoint.step

    capsys.readouterr()
    assert found() == 2
    (line,) = harmless(capsys.readouterr().err.splitlines())
    previous = latest.parent / "previous"
    assert f"latest is damaged, trying {previous}: {latest.parent}/" in line
    previous.unlink()
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(latest.parent))}/"):
        found()
    assert capsys.readouterr().err == ""


def named(value: object) -> str:
    return ascii(value)[:30].replace("\\", "")


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_gives_way_to_previous(content: bytes, latest: Path, capsys: Capsys) -> None:
    (latest / "checkpoint.json").write_bytes(content)
    assert_only_previous_counts(latest, capsys)


@pytest.mark.parametrize(("place", "value"), HOSTILE, ids=named)
def test_a_value_that_cannot_be_gives_way_to_previous(
    place: str, value: object, latest: Path, capsys: Capsys
) -> None:
    edit(latest, place, value)
    assert_only_previous_counts(latest, capsys)


@pytest.mark.parametrize(
    ("place", "value"),
    [("step", 2), ("data/sequences", 3), ("options/lr", 0.5), ("model/rms_norm_eps", 1e-5)],
)
def test_a_value_that_could_be_does_not_change_unnoticed(
    place: str, value: object, latest: Path, capsys: Capsys
) -> None:
    edit(latest, place, value, seal=True)
    with pytest.raises(CheckpointError, match="it is damaged: its checksum does not match"):
        read_checkpoint(latest)
    assert_only_previous_counts(latest, capsys)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
@pytest.mark.parametrize("name", ["checkpoint.json", "model.safetensors", "training.safetensors"])
def test_a_pipe_is_not_waited_for(name: str, make: Any, latest: Path, capsys: Capsys) -> None:
    (latest / name).unlink()
    make(latest / name)
    assert_only_previous_counts(latest, capsys)
    if name == "checkpoint.json":
        with pytest.raises(CheckpointError, match="it is not a file"):
            read_plain_description(latest)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("step", -5),
        ("model", []),
        ("options", ESCAPE),
        (f"model/{ESCAPE}", 1),
        ("progress", None),
        ("options/warmup", -3),
        ("threads", 10**9),
    ],
    ids=named,
)
def test_a_whole_run_resumes_from_previous_or_ends_in_one_line(
    place: str, value: object, latest: Path, train: Train, capsys: Capsys
) -> None:
    """The two steps of ``previous`` are all that is asked for first."""
    edit(latest, place, value)
    sound = place == "options"  # they are only not inherited
    assert train("--run=r", "--resume=auto", "--steps=2") == 0
    *damaged, last = harmless(capsys.readouterr().err.splitlines())
    assert ["latest is damaged, trying" in line for line in damaged] == [True] * (not sound)
    assert "already has all 2 steps" in last
    (latest.parent / "previous").unlink()
    assert train("--run=r", "--resume=auto", "--steps=4") == (0 if sound else 1)
    (line,) = harmless(capsys.readouterr().err.splitlines())
    assert sound or line.startswith(f"train.py: r failed: {latest}"), line


def test_laid_out_anew_or_without_its_checksum_it_is_the_same_description(latest: Path) -> None:
    before = read_checkpoint(latest).description
    path = latest / "checkpoint.json"
    path.write_text(json.dumps(dict(reversed(before.items())), indent=7), "utf-8")
    assert read_checkpoint(latest).description == before
    del before["sha256"]
    path.write_text(json.dumps(before), "utf-8")
    assert read_checkpoint(latest).description == before


def test_progress_that_a_run_wrote_is_read_back() -> None:
    known = Progress(step=3, loss=2, validation_loss=0.0, bad_steps=2, collapse_index=[None, 1, 0])
    saved = json.loads(json.dumps(known.to_dict()))
    assert Progress.from_dict(saved, 3).to_dict() == known.to_dict()
    fresh = Progress()
    assert Progress.from_dict(fresh.to_dict(), 0).best_loss == fresh.best_loss


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A checkpoint of a small model, and its ``checkpoint.json``."""
    yarn = YarnScaling(factor=2.0, original_max_position_embeddings=8)
    config = make_config(vocab_size=4, num_hidden_layers=2, rope_scaling=yarn)
    folder = tmp_path_factory.mktemp("saved")
    write_checkpoint(folder, LanguageModel(config), "abcd", validation_loss=1.5)
    return folder, (folder / "checkpoint.json").read_text("utf-8")


NUMBERS = st.sampled_from([-1, 0, 1, 2, 3, 4, 8, 0.5, 1e300, 2**31 - 1, 2**63, 10**30])
TEXTS = st.text(st.characters(), max_size=3) | st.sampled_from(
    ["..", "sha256", "char", "huggingface", "position"]
)
LEAVES = st.none() | st.booleans() | NUMBERS | TEXTS
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2)
)


@st.composite
def changes(draw: st.DrawFn) -> Callable[[dict[str, Any]], None]:
    """Something to do to a description: somewhere in it, a value is replaced, removed or added."""
    steps = draw(st.lists(st.integers(0, 40), min_size=1, max_size=3))
    what, value, name = draw(st.sampled_from(["set", "remove", "add"])), draw(VALUES), draw(TEXTS)

    def change(inner: dict[str, Any]) -> None:
        key = name
        for depth, step in enumerate(steps):
            names = sorted(inner)
            key = names[step % len(names)] if names else name
            if depth == len(steps) - 1 or not isinstance(inner.get(key), dict):
                break
            inner = inner[key]
        if what == "remove":
            inner.pop(key, None)
        else:
            inner[key if what == "set" else name] = value

    return change


@given(st.lists(changes(), min_size=1, max_size=3))
@settings(max_examples=100)
def test_any_description_gives_a_model_or_a_checkpoint_error(small: Any, todo: Any) -> None:
    folder, text = small
    description = json.loads(text)
    del description["sha256"]
    for change in todo:
        change(description)
    (folder / "checkpoint.json").write_text(json.dumps(description), "utf-8")
    try:
        model = read_checkpoint(folder).load_model()
    except CheckpointError:
        return
    assert model(torch.zeros(1, 4, dtype=torch.int64)).logits_BSV.shape[:2] == (1, 4)


def test_a_whole_number_is_read_as_a_float_where_one_is_meant(small: tuple[Path, str]) -> None:
    folder, text = small
    description = json.loads(text)
    description["model"]["rope_theta"] = 50000
    description["model"]["rope_scaling"]["factor"] = 3
    del description["sha256"]
    (folder / "checkpoint.json").write_text(json.dumps(description), "utf-8")
    config = read_checkpoint(folder).config
    read = (config.rope_theta, config.rope_scaling.factor, config.rope_scaling.beta_fast)
    assert repr(read) == "(50000.0, 3.0, 32.0)"


@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
@settings(max_examples=100)
def test_a_flipped_bit_is_seen_or_harmless(small: tuple[Path, str], place: int, bit: int) -> None:
    folder, text = small
    content = bytearray(text.encode())
    content[place % len(content)] ^= 1 << bit
    (folder / "checkpoint.json").write_bytes(content)
    try:
        found = read_checkpoint(folder).description
    except CheckpointError:
        return
    written = json.loads(text)
    assert all(found[name] == written[name] for name in written.keys() - {"sha256"})


BIAS = "layers.1.mlp.router.expert_bias"
MOMENT = "optimizer.norm.weight.exp_avg_sq"
COUNTS = "layers.1.mlp.router.counts_E"
Change = Callable[[torch.Tensor], torch.Tensor]


def seal_with(folder: Path, name: str, tensor: str, change: Change) -> None:
    """Replace ``tensor`` in the file ``name``; size and checksums in the description agree."""
    tensors = load_file(folder / name)
    tensors[tensor] = change(tensors[tensor])
    save_file(tensors, folder / name, metadata={"format": "pt"})
    edit(folder, f"files/{name}", file_facts(folder / name))


@pytest.mark.parametrize(
    ("file", "tensor", "change", "problem"),
    [
        (WEIGHTS, BIAS, torch.Tensor.long, "is torch.int64, not a floating-point type"),
        (WEIGHTS, BIAS, lambda bias: bias * math.nan, "has numbers that are not finite"),
        (WEIGHTS, "norm.weight", lambda w: w / 0, "has numbers that are not finite"),
        (TRAINING_STATE, MOMENT, lambda it: it - 1, "has NaN or negative numbers"),
        (TRAINING_STATE, MOMENT, lambda it: it * math.nan, "has NaN or negative numbers"),
        (TRAINING_STATE, MOMENT[:-3], lambda it: it * math.nan, "has NaN or negative numbers"),
        (TRAINING_STATE, MOMENT.replace("exp_avg_sq", "step"), lambda it: it - 99, "negative"),
        (TRAINING_STATE, COUNTS, lambda it: it - 10**6, "has NaN or negative numbers"),
    ],
    ids=["int64", "NaN", "infinite", "negative moment", "NaN moment", "NaN mean", "step", "counts"],
)  # fmt: skip
def test_numbers_that_no_training_writes_are_refused_by_file_and_tensor(
    file: str, tensor: str, change: Change, problem: str, latest: Path, train: Train, read_log: Any,
    capsys: Capsys,
) -> None:  # fmt: skip
    seal_with(latest, file, tensor, change)
    before = read_log("r")
    assert train("--run=r", "--resume=auto", "--steps=5") == 1
    (line,) = harmless(capsys.readouterr().err.splitlines())
    assert line.startswith(f"train.py: r failed: {latest}")
    assert file in line
    assert tensor in line
    assert problem in line
    assert read_log("r") == before, "no step was made"
