"""The real TensorBoard writers write, we read; and their reader reads what our tests write.

``UPDATE_GOLDEN=1`` also writes the golden files that ``tests/sources`` reads without tensorboard.
"""

import importlib
import json
import os
import shutil
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from microscope_tui.sources import Keys, RowRecords, SourceRequest, TensorBoardReader
from tests.sources import event_bytes
from tests.sources.reading import Steps, all_rows, counts_of, drained, settle
from tests.sources.truth import CONFIG, GOLDEN, STEPS, expected, logged, numbers_of

recognises, NAMES = TensorBoardReader.recognises, TensorBoardReader.names

pytest.importorskip("tensorboard")


def write_events(folder: Path, *, tensors: bool) -> Path:
    """With the writer that torch uses; events as torch makes them, or TensorFlow (``tensors``)."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter
    from tensorboard.util.tensor_util import make_tensor_proto

    writer = EventFileWriter(str(folder))
    text = make_tensor_proto(json.dumps(CONFIG["model"]).encode())
    told = Summary(value=[Summary.Value(tag="model_config/text_summary", tensor=text)])
    writer.add_event(Event(wall_time=999.0, summary=told))
    for step in STEPS:
        for tag, number in logged(step).items():
            value: dict[str, Any] = {"simple_value": number}
            if tensors:
                value = {"tensor": make_tensor_proto(number, dtype="float32")}
            summary = Summary(value=[Summary.Value(tag=tag, **value)])
            writer.add_event(Event(wall_time=1000.5 + step, step=step, summary=summary))
    writer.close()
    (path,) = folder.iterdir()
    return path


@pytest.mark.parametrize("tensors", [False, True])
def test_what_tensorboard_writes_is_what_is_read(tmp_path: Path, tensors: bool) -> None:
    path = write_events(tmp_path, tensors=tensors)
    assert NAMES.fullmatch(path.name)
    assert recognises(path)
    assert recognises(tmp_path)
    for given in (path, tmp_path):
        reader = TensorBoardReader(given, Keys())
        rows = all_rows(reader)
        assert numbers_of(rows) == expected()
        assert [row.time for row in rows] == [1000.5 + step for step in STEPS]
        assert reader.config == CONFIG["model"]
    if os.environ.get("UPDATE_GOLDEN"):
        shutil.copyfile(path, GOLDEN / ("tensorboard-tensors" if tensors else "tensorboard"))


LOADS = "moe/load/layer_{}"
MODULES = ["torch.utils.tensorboard", "tensorboardX"]
WAYS: dict[str, Callable[[Any, str, np.ndarray, int, int], None]] = {
    "whole edges": lambda writer, tag, ids, experts, step: writer.add_histogram(
        tag, ids, step, bins=range(experts + 1)
    ),
    "half edges": lambda writer, tag, ids, experts, step: writer.add_histogram(
        tag, ids, step, bins=np.arange(experts + 1) - 0.5
    ),
    "bins=E": lambda writer, tag, ids, experts, step: writer.add_histogram(
        tag, ids, step, bins=experts
    ),
    "plugin": lambda writer, tag, ids, experts, step: add_to_plugin(
        writer, tag, ids, experts, step
    ),
    "default": lambda writer, tag, ids, experts, step: writer.add_histogram(tag, ids, step),
    "of counts": lambda writer, tag, ids, experts, step: writer.add_histogram(
        tag, np.bincount(ids, minlength=experts), step
    ),
}
KINDS = ["int64", "int32", "float32", "float64", "float16", "bfloat16"]


def add_to_plugin(writer: Any, tag: str, ids: np.ndarray, experts: int, step: int) -> None:
    """As ``tf.summary.histogram``."""
    plugin = importlib.import_module("tensorboard.plugins.histogram.summary_v2")
    summary = plugin.histogram_pb(tag, ids, experts)
    writer.file_writer.add_summary(summary, step)


def log_loads(
    writer: Any, add: Callable[[Any, str, np.ndarray, int, int], None], experts: int, dead: int
) -> Steps:
    """Four steps of two layers by a writer; what the counts are."""
    draw = np.random.default_rng(experts)
    expected: Steps = {}
    for step in range(1, 5):
        expected[step] = {}
        for layer, cut in enumerate((0, dead)):  # then one in the middle is dead too
            ids = draw.integers(cut, experts - cut, 40 * experts)
            if cut:
                ids[ids == experts // 2] = cut
            expected[step][f"L{layer}"] = np.bincount(ids, minlength=experts).tolist()
            add(writer, LOADS.format(layer), ids, experts, step)
    writer.close()
    return expected


def opened(folder: Path) -> RowRecords:
    (path,) = folder.iterdir()
    settle(path)
    return RowRecords(TensorBoardReader(folder, Keys()), "r", "tensorboard", SourceRequest())


@pytest.mark.parametrize("experts", [16, 64, 256])
@pytest.mark.parametrize(
    ("module", "way", "dead"),
    [
        *product(MODULES, ["whole edges", "half edges"], [0, 2]),
        *product(MODULES, ["bins=E"], [0]),
        (MODULES[0], "plugin", 0),
    ],
)
def test_histograms_of_the_chosen_experts_are_the_counts(
    tmp_path: Path, module: str, experts: int, way: str, dead: int
) -> None:
    """Without being asked: the keys are not known."""
    writer = pytest.importorskip(module).SummaryWriter(str(tmp_path))
    expected = log_loads(writer, WAYS[way], experts, dead)
    assert counts_of(drained(opened(tmp_path))) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_counts_are_read(tmp_path: Path, kind: str) -> None:
    def add(writer: Any, tag: str, ids: np.ndarray, experts: int, step: int) -> None:
        counts = torch.bincount(torch.tensor(ids), minlength=experts)
        writer.add_tensor(tag, counts.clamp(max=128).to(getattr(torch, kind)), step)

    writer = pytest.importorskip("torch.utils.tensorboard").SummaryWriter(str(tmp_path))
    expected = log_loads(writer, add, 64, 2)
    assert counts_of(drained(opened(tmp_path))) == expected


@pytest.mark.parametrize(
    ("module", "way", "why"),
    [
        *product(MODULES, ["bins=E"], ["64 bins from 2 to 61, not one for each expert"]),
        (MODULES[0], "plugin", "64 bins from 2 to 61, not one for each expert"),
        *product(MODULES, ["default", "of counts"], ["bins of values, not counts"]),
    ],
)
def test_histograms_that_prove_no_counts_are_refused_with_the_reason(
    tmp_path: Path, module: str, way: str, why: str
) -> None:
    writer = pytest.importorskip(module).SummaryWriter(str(tmp_path))
    log_loads(writer, WAYS[way], 64, 2)
    reader = opened(tmp_path)
    assert not [record for record in drained(reader) if record["kind"] == "step"]
    assert f"{why}: log the counts with add_tensor" in reader.missing


def test_the_golden_file_of_lists_is_what_torch_writes(tmp_path: Path) -> None:
    writer = pytest.importorskip("torch.utils.tensorboard").SummaryWriter(str(tmp_path))
    for step in range(1, 4):
        ids = np.arange(200) % (7 - step)
        counts = torch.bincount(torch.tensor(ids), minlength=6)
        WAYS["whole edges"](writer, "router/tokens_per_expert/0", ids, 6, step)
        WAYS["plugin"](writer, "router/tokens_per_expert/1", ids, 6, step)
        writer.add_tensor("router/tokens_per_expert/2", counts, step)
        writer.add_tensor("router/expert_bias", torch.eye(3, 6).bfloat16(), step)
    writer.close()
    (path,) = tmp_path.iterdir()
    if os.environ.get("UPDATE_GOLDEN"):
        shutil.copyfile(path, GOLDEN / "tensorboard-lists")
    golden, written = (TensorBoardReader(at, Keys()) for at in (GOLDEN / "tensorboard-lists", path))
    assert numbers_of(all_rows(golden)) == numbers_of(all_rows(written))
    assert golden.keys.refused.keys() == {"router/tokens_per_expert/1"}
    assert golden.keys.counted.keys() == {f"router/tokens_per_expert/{at}" for at in (0, 1)}


def test_a_summary_writer_is_followed_as_it_flushes(tmp_path: Path) -> None:
    writers = pytest.importorskip("tensorboardX")
    writer = writers.SummaryWriter(str(tmp_path))
    reader = TensorBoardReader(tmp_path, Keys())
    for step in range(1, 6):
        writer.add_scalar("moe/max_vio/layer_1", step / 4, step)
        rows = []
        until = time.monotonic() + 10
        while not rows and time.monotonic() < until:
            writer.flush()  # another thread writes
            rows = all_rows(reader)
        assert [row.step for row in rows] == [step]
    writer.close()


def test_tensorboard_reads_what_our_tests_write(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    event = event_bytes.event(7, 1.5, event_bytes.value("loss", 0.25))
    path = tmp_path / "events.out.tfevents.1.x"
    path.write_bytes(event_bytes.file_of(event))
    first, read = LegacyEventFileLoader(str(path)).Load()
    assert first.file_version == "brain.Event:2"
    assert (read.step, read.wall_time) == (7, 1.5)
    assert (read.summary.value[0].tag, read.summary.value[0].simple_value) == ("loss", 0.25)
