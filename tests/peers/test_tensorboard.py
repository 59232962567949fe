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

from microscope_tui.sources import Keys, SourceRequest
from microscope_tui.sources.row_records import RowRecords
from microscope_tui.sources.tensorboard import TensorBoardReader
from tests.sources import event_bytes
from tests.sources.reading import all_rows, counts_of, drained, settle
from tests.sources.truth import CONFIG, GOLDEN, STEPS, chosen, expected, logged, numbers_of

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


Add = Callable[[Any, str, np.ndarray, int, int], None]
TORCH = "torch.utils.tensorboard"
TENSORS = (torch.int64, torch.float32, torch.float16, torch.bfloat16)
E = 64


def as_histogram(writer: Any, tag: str, ids: np.ndarray, step: int, experts: int) -> None:
    writer.add_histogram(tag, ids, step, bins=np.arange(experts + 1))


def as_tensor(kind: torch.dtype) -> Add:
    return lambda writer, tag, ids, step, experts: writer.add_tensor(
        tag, torch.bincount(torch.tensor(ids), minlength=experts).to(kind), step
    )


def to_plugin(writer: Any, tag: str, ids: np.ndarray, step: int, experts: int) -> None:
    plugin = importlib.import_module("tensorboard.plugins.histogram.summary_v2")
    writer.file_writer.add_summary(plugin.histogram_pb(tag, ids, experts), step)


@pytest.mark.parametrize(
    ("other", "add"),
    [(as_histogram, as_tensor(TENSORS[0])), *((to_plugin, as_tensor(kind)) for kind in TENSORS)],
)
def test_chosen_experts_are_the_counts(tmp_path: Path, other: Add, add: Add) -> None:
    """Histograms are named."""
    writer = pytest.importorskip(TORCH).SummaryWriter(str(tmp_path))
    steps, counts = chosen(E, 2)
    for (step, rows), at in product(enumerate(steps, 1), range(2)):
        add(writer, f"router/tokens_per_expert/{at}", rows[at], step, E)
        other(writer, f"router/tokens_per_expert/{at + 2}", rows[at], step, E)
    writer.close()
    (path,) = tmp_path.iterdir()
    settle(path)
    reader = TensorBoardReader(tmp_path, Keys())
    records = RowRecords(reader, "r", "tensorboard", SourceRequest())
    assert counts_of(drained(records)) == counts
    assert "router/tokens_per_expert/2: a histogram is not read, log the" in records.missing


def test_the_golden_file_of_lists_is_what_torch_writes(tmp_path: Path) -> None:
    writer = pytest.importorskip(TORCH).SummaryWriter(str(tmp_path))
    forms = (as_histogram, to_plugin, as_tensor(torch.int64), as_tensor(torch.float16))
    for step, (layer, add) in product(range(1, 4), enumerate(forms)):
        add(writer, f"router/tokens_per_expert/{layer}", np.arange(200) % (7 - step), step, 6)
    writer.close()
    (path,) = tmp_path.iterdir()
    if os.environ.get("UPDATE_GOLDEN"):
        shutil.copyfile(path, GOLDEN / "tensorboard-lists")
    golden, written = (TensorBoardReader(at, Keys()) for at in (GOLDEN / "tensorboard-lists", path))
    assert numbers_of(all_rows(golden)) == numbers_of(all_rows(written))
    kinds = ["histogram", "histogram", "list", "list"]
    assert [*golden.keys.objects.values()] == kinds


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
