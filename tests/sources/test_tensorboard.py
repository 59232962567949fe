"""TensorBoard's event files: what its writers wrote, several files of a run, and damage."""

import math
import os
import struct
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from microscope_tui.sources.keys import Keys, Target
from microscope_tui.sources.reader import Row, Unreadable
from microscope_tui.sources.tensorboard import (
    MAX_RECORD_BYTES,
    EventRows,
    RecordSplitter,
    StepLayout,
    TensorBoardReader,
    find_record,
    masked_crc32c,
)
from tests.sources import event_bytes as eb
from tests.sources.reading import all_rows
from tests.sources.truth import ids_of, numbers_of
from tests.sources.wandb_bytes import part, varint

NAME = "events.out.tfevents.{}.host.1.0"


def scalar(step: int, number: float, tag: str = "loss", wall: float | None = None) -> bytes:
    return eb.event(step, 1000.0 + step if wall is None else wall, eb.value(tag, number))


def written(folder: Path, *events: bytes, time: int = 1) -> Path:
    path = folder / NAME.format(time)
    path.write_bytes(eb.file_of(*events))
    os.utime(path, (1e9, 1e9))
    return path


def steps_of(reader: TensorBoardReader) -> list[int]:
    return [row.step for row in all_rows(reader)]


def test_a_folder_is_one_run_and_its_files_follow_each_other(tmp_path: Path) -> None:
    written(tmp_path, scalar(1, 1.0), scalar(2, 2.0), scalar(3, 3.0), time=9)
    written(tmp_path, scalar(2, 9.0, wall=2000.0), scalar(3, 8.0, wall=2001.0), time=10)
    rows = all_rows(TensorBoardReader(tmp_path, Keys()))
    assert [(row.step, row.values[0][1]) for row in rows] == [
        (1, 1.0), (2, 2.0), (3, 3.0), (2, 9.0), (3, 8.0),
    ]  # fmt: skip


def test_files_written_at_once_are_merged_by_their_time(tmp_path: Path) -> None:
    train = [scalar(step, 1.0) for step in range(1, 2001)]
    written(tmp_path, *train, time=1)
    norms = [scalar(step, 2.0, "grad_norm", 1000.5 + step) for step in range(100, 2001, 100)]
    written(tmp_path, *norms, time=2)
    reader = TensorBoardReader(tmp_path, Keys())
    rows = all_rows(reader, max_bytes=1000)
    assert [row.step for row in rows] == sorted([*range(1, 2001), *range(100, 2001, 100)])
    assert reader.offset == reader.size


def test_a_writer_that_flushes_late_costs_no_step_of_the_other(tmp_path: Path) -> None:
    written(tmp_path, *(scalar(step, 1.0) for step in range(1, 31)), time=1)
    reader = TensorBoardReader(tmp_path, Keys())
    assert steps_of(reader) == [*range(1, 31)]
    late = [scalar(step, 2.0, "grad_norm", 1000.5 + step) for step in range(20, 31)]
    written(tmp_path, *late, time=2)
    assert reader.read().restarted
    assert steps_of(reader) == sorted([*range(1, 31), *range(20, 31)])


def test_a_file_that_appears_later_is_followed(tmp_path: Path) -> None:
    reader = TensorBoardReader(tmp_path, Keys())
    assert reader.read().rows == []
    assert reader.exhausted
    written(tmp_path, scalar(1, 1.0))
    assert steps_of(reader) == [1]
    (tmp_path / "loss_a").mkdir()  # another run
    written(tmp_path / "loss_a", scalar(7, 1.0), time=3)
    written(tmp_path, scalar(2, 1.0), time=2)
    assert steps_of(reader) == [2]


def test_events_of_one_step_are_one_row(tmp_path: Path) -> None:
    events = [scalar(5, 0.25, f"moe_ep_usage/L-1_EP-{e}") for e in range(4)]
    rest = (scalar(0, 1.0), scalar(-1, 1.0), scalar(300, 2.0, wall=math.nan))
    rows = all_rows(TensorBoardReader(written(tmp_path, *events, *rest), Keys()))
    assert [(row.step, row.time, len(row.values)) for row in rows] == [
        (5, 1005.0, 4), (0, 1000.0, 1), (300, None, 1),
    ]  # fmt: skip


def tensor(kind: int, *fields: bytes) -> bytes:
    return eb.tensor_value("loss", part(1, kind) + b"".join(fields))


HALF, TWO = struct.pack("<f", 1.5), struct.pack("<2f", 1.5, 2.5)


@pytest.mark.parametrize(
    ("values", "numbers"),
    [
        ([eb.value("loss", 0.5), eb.value("x", 1.0), eb.value("loss", 0.25)], [0.5, 0.25]),
        *(([eb.value("loss", x)], [x]) for x in (math.nan, math.inf, -math.inf)),
        ([tensor(1, part(2, b""), part(4, HALF))], [1.5]),
        ([tensor(1, part(5, HALF))], [1.5]),
        ([tensor(1, eb.fixed(5, 1.5, "<f"))], [1.5]),
        ([tensor(2, eb.fixed(6, 0.1, "<d"))], [0.1]),
        ([tensor(1, part(4, TWO))], []),
        ([tensor(3, part(7, 4))], [4.0]),
        ([tensor(7, part(8, b"text"))], []),
        ([eb.tensor_value("loss", part(4, HALF))], []),
    ],
)
def test_numbers_and_tensors_with_one_number_are_read(
    tmp_path: Path, values: list[bytes], numbers: list[float]
) -> None:
    rows = all_rows(TensorBoardReader(written(tmp_path, eb.event(3, 1.0, *values)), Keys()))
    found = [pair for row in rows for pair in row.values]
    assert repr(found) == repr([(Target("loss"), number) for number in numbers])


@given(
    st.floats(0, 2e9), st.integers(0, 2**40), st.text("ab/_ é", max_size=200), st.floats(width=32)
)
def test_fast_and_slow_ways_read_the_same(wall: float, step: int, tag: str, number: float) -> None:
    keys = Keys()
    keys[tag] = Target("loss")
    event = eb.event(step, wall, eb.value(tag, number))
    rows, why = EventRows(keys).rows([event])
    slow = EventRows(keys)._slow(event)
    assert why is None
    assert [(row.step, row.time, repr(row.values)) for row in rows] == [
        (slow.step, slow.time, repr(slow.values))
    ]


def test_steps_of_one_layout_are_read_like_single_events(tmp_path: Path, monkeypatch: Any) -> None:
    whole: list[Row | None] = []
    alone = StepLayout.row
    monkeypatch.setattr(StepLayout, "row", lambda *of: whole.append(alone(*of)) or whole[-1])
    logged = {}
    for step in [*range(100, 140), *range(120, 400)]:
        for at, tag in enumerate(["other", *(f"moe_entropy/L-{n}" for n in range(9)), "more"]):
            moved = {150: "moe_entropy/L-0", 170: "moe_entropy/L-9"} if at == 5 else {}
            tag = moved.get(step, tag)
            named = step + (step == 160 and at == 7) + 900 * (tag == "more")
            if step != 180 or at != 4:
                logged[len(logged)] = (named, step + at / 16, tag)
    events = [eb.event(step, wall, eb.value(tag, x)) for x, (step, wall, tag) in logged.items()]
    rows = all_rows(TensorBoardReader(written(tmp_path, *events), Keys()), 40_000)
    known = [(step, Keys()[tag], x) for x, (step, _, tag) in logged.items() if Keys()[tag]]
    assert [(row.step, *pair) for row in rows for pair in row.values] == known
    assert all(row.time == logged[int(row.numbers[0])][1] for row in rows)
    assert len(whole) - whole.count(None) > 200


def test_the_checksum_of_a_length_is_always_verified(tmp_path: Path) -> None:
    path = written(tmp_path, scalar(1, 1.0), scalar(2, 2.0))
    data = bytearray(path.read_bytes())
    start = len(data) - len(eb.record(scalar(2, 2.0)))
    data[start] ^= 1
    path.write_bytes(data)
    for given_path in (path, tmp_path):
        reader = TensorBoardReader(given_path, Keys())
        assert [row.step for row in reader.read().rows] == [1]
        for _ in range(2):
            with pytest.raises(Unreadable, match=f"damaged at byte {start}: the checksum"):
                reader.read()


def test_damage_in_one_file_does_not_hide_the_others(tmp_path: Path) -> None:
    path = written(tmp_path, scalar(1, 1.0))
    with path.open("ab") as file:
        file.write(bytes(100))
    written(tmp_path, scalar(2, 1.0), time=2)
    reader = TensorBoardReader(tmp_path, Keys())
    assert [row.step for row in reader.read().rows] == [1, 2]
    with pytest.raises(Unreadable, match="zeros that a crash left"):
        reader.read()
    with (tmp_path / NAME.format(2)).open("ab") as file:
        file.write(eb.record(scalar(3, 1.0)))
    assert [row.step for row in reader.read().rows] == [3]


def test_an_event_that_cannot_be_decoded_is_reported(tmp_path: Path) -> None:
    path = written(tmp_path, scalar(1, 1.0), b"\x0b\x00")
    reader = TensorBoardReader(path, Keys())
    assert [row.step for row in reader.read().rows] == [1]
    with pytest.raises(Unreadable, match=r"cannot be decoded \(field 1 has the unknown wire type"):
        reader.read()


def test_a_sample_is_whole_steps_of_the_whole_history_in_order(tmp_path: Path) -> None:
    events = [
        scalar(step, step + e / 8, f"moe_ep_usage/L-1_EP-{e}")
        for step in range(1, 2001)
        for e in range(8)
    ]
    written(tmp_path, *events[: 8 * 1000], time=1)
    written(tmp_path, *events[8 * 1000 :], time=2)
    everything = numbers_of(all_rows(TensorBoardReader(tmp_path, Keys())))
    rows = TensorBoardReader(tmp_path, Keys()).sample(50)
    steps = [row.step for row in rows]
    assert steps == sorted(set(steps))
    assert len(steps) == 50
    assert max(b - a for a, b in pairwise(steps)) < 70
    assert numbers_of(rows).items() <= everything.items()


def test_a_sample_of_a_run_that_logs_routers_now_and_then_has_routers(tmp_path: Path) -> None:
    events = [
        scalar(step, 1.0, tag)
        for step in range(1, 20_001)
        for tag in ("loss", *(() if step % 50 else (f"moe_entropy/L-{n}" for n in range(4))))
    ]
    written(tmp_path, *events)
    rows = TensorBoardReader(tmp_path, Keys()).sample(40)
    assert all(len(row.values) == 5 for row in rows)
    assert len(rows) > 35


def test_a_record_that_is_too_long_is_skipped_in_any_cut() -> None:
    length = MAX_RECORD_BYTES + 1
    head = struct.pack("<Q", length)
    long = head + struct.pack("<I", masked_crc32c(head)) + bytes(length + 4)
    data = eb.record(b"before") + long + eb.record(b"after")
    for cut in (len(data), 1 << 20):
        splitter = RecordSplitter()
        found = []
        for at in range(0, len(data), cut):
            found += splitter.feed(data[at : at + cut])
        assert found == [b"before", b"after"]


@given(st.binary(max_size=200), st.integers(0, 2**16))
def test_a_record_is_found_from_any_place(before: bytes, length: int) -> None:
    record = eb.record(bytes([7]) * length)
    at = find_record(before + record)
    assert at is not None
    assert at <= len(before)


LOAD = "router/tokens_per_expert/1"


def read(folder: Path, *values: bytes) -> tuple[list[float], Keys]:
    """The numbers of a step with ``values``, and what was found of their keys."""
    keys = Keys()
    rows = all_rows(TensorBoardReader(written(folder, eb.event(3, 1.0, *values)), keys))
    return [number for row in rows for number in row.numbers], keys


@pytest.mark.parametrize("histogram", [eb.histogram_of, eb.plugin_of])
def test_a_histogram_is_not_read_but_seen(tmp_path: Path, histogram: Any) -> None:
    numbers, keys = read(tmp_path, histogram(LOAD, ids_of(16, 2), 16))
    assert (numbers, keys.objects) == ([], {LOAD: "histogram"})


def packed(field: int, layout: str, *numbers: float) -> bytes:
    return part(field, struct.pack(f"<{len(numbers)}{layout}", *numbers))


FOUR, SIGNED = (3, 0, 200, 1), (3, 0, -200, 1)
BITS = b"".join(varint(struct.unpack("<I", struct.pack("<f", x))[0]) for x in FOUR)  # as torch


@pytest.mark.parametrize(
    ("kind", "values", "numbers"),
    [
        (1, packed(5, "f", *FOUR), FOUR),
        (1, b"".join(eb.fixed(5, x, "<f") for x in FOUR), FOUR),
        (2, packed(4, "d", *FOUR), FOUR),
        (3, part(7, b"".join(map(varint, FOUR))), FOUR),
        (9, packed(4, "q", *SIGNED), SIGNED),
        (9, part(10, b"".join(map(varint, SIGNED))), SIGNED),
        (9, part(10, 3) + part(10, 0), (3, 0, 0, 0)),  # TensorFlow leaves equal last numbers out
        (14, part(13, BITS), FOUR),
        (19, packed(4, "e", *FOUR), FOUR),
        (7, part(8, b"text"), ()),
        (9, packed(4, "q", *FOUR, 1), ()),
        (9, b"", ()),
    ],
)
@pytest.mark.parametrize("shape", [(4,), (2, 2)])
def test_a_tensor_of_any_kind_of_number_is_a_list(
    tmp_path: Path, kind: int, values: bytes, numbers: Sequence[int], shape: tuple[int, ...]
) -> None:
    tag = "router/tokens_per_expert" + "/1" * (len(shape) == 1)
    found, keys = read(tmp_path, eb.tensor_value(tag, eb.tensor(kind, shape, values)))
    assert found == [*numbers]
    places = [(1, at) for at in range(4)] if len(shape) == 1 else list(np.ndindex(2, 2))
    expected = {Target("tokens_per_expert", *place) for place in places if numbers}
    assert expected.issubset(keys.values())


@pytest.mark.parametrize("shape", [(1 << 40,), (1 << 62, 0), (2**64 - 1, 3), (2,) * 99_999, (0,)])
def test_a_shape_without_end_costs_no_memory(tmp_path: Path, shape: tuple[int, ...]) -> None:
    value = eb.tensor_value(LOAD, eb.tensor(2, shape, packed(4, "d", 5.0, 6.0)))
    assert read(tmp_path, value)[0] == []


def test_histograms_and_lists_without_a_target_are_counted_and_not_remembered() -> None:
    keys = Keys()
    rows = EventRows(keys)
    matrix = eb.tensor_value("matrix", eb.tensor(9, (2, 2), packed(4, "q", *FOUR)))
    text = eb.tensor_value("text", eb.tensor(7, (1,), part(8, b"words")))
    for step in range(9):
        weights = eb.histogram_of("weights", ids_of(16, 0, step), 16)
        assert not any(rows.rows([eb.event(step, 1.0, one) for one in (weights, matrix, text)]))
    assert keys.objects == {"weights": "histogram", "matrix": "list"}
    assert len(rows._heads) == 2
