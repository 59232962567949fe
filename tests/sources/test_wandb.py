"""W&B files: what wandb 0.31 wrote, what older versions write, and how files end or break."""

import math
import os
import random
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from microscope_tui.draw.spans import plain
from microscope_tui.screens.runs.text import fit_list, run_line
from microscope_tui.sources import Unreadable
from microscope_tui.sources.keys import Keys, Target, rules_of
from microscope_tui.sources.wandb import BLOCK_BYTES, RecordSplitter, WandbReader
from microscope_tui.watch import Fleet
from tests.sources import wandb_bytes as wb
from tests.sources.reading import all_rows
from tests.sources.truth import numbers_of


def written(folder: Path, data: bytes | bytearray) -> Path:
    path = folder / "run-abc123.wandb"
    path.write_bytes(data)
    os.utime(path, (1e9, 1e9))
    return path


def reader_of(folder: Path, *records: bytes) -> WandbReader:
    return WandbReader(written(folder, wb.log(records)), Keys())


def rows_of(folder: Path, *records: bytes) -> dict[int, dict[str, float]]:
    rows = all_rows(reader_of(folder, *records))
    return {row.step: {target.quantity: value for target, value in row.values} for row in rows}


def test_only_what_may_hold_the_number_of_experts_is_kept_of_a_config(tmp_path: Path) -> None:
    reader = reader_of(
        tmp_path,
        wb.run(api_key="secret", model={"num_experts": 8}),
        wb.config(**{"moe-topk": 2, "password": "secret"}),
        wb.history({"loss": 1.0}, 1),
    )
    all_rows(reader)
    assert reader.config == {"model": {"num_experts": 8}, "moe-topk": 2}


def test_a_run_is_named_by_its_display_name_else_its_id(tmp_path: Path) -> None:
    for display_name, shown in (("", "abc"), ("a\x1b[2Jb", "a\N{REPLACEMENT CHARACTER}[2Jb")):
        reader = reader_of(tmp_path, wb.run("abc", display_name))
        reader.read()
        assert reader.name == shown


def test_runs_are_listed_by_their_names_with_project_and_group(tmp_path: Path) -> None:
    labels = wb.part(3, b"moe") + wb.part(6, b"sweep")
    for run_id, name in (("abc", b"base"), ("xyz", b"")):
        of_run = wb.part(1, run_id.encode()) + labels + (wb.part(8, name) if name else b"")
        (tmp_path / f"run-{run_id}.wandb").write_bytes(wb.log([wb.part(17, of_run)]))
    fleet = Fleet(tmp_path)
    fleet.search(now=True)
    cards = fleet.cards()
    assert {card.file.name for card in cards} == {"base (abc)", "run-xyz"}
    table = fit_list(cards, 120)
    assert "project  group" in plain(table.heads())
    assert "moe      sweep" in plain(run_line(cards[0], table, chosen=False))


@pytest.mark.parametrize(("code", "ended"), [(0, "finished"), (1, "failed"), (255, "failed")])
def test_the_exit_record_ends_the_run(tmp_path: Path, code: int, ended: str) -> None:
    assert reader_of(tmp_path, wb.exit_record(code)).read().ended == ended


def test_the_keys_of_older_writers_are_read(tmp_path: Path) -> None:
    old = wb.history({"loss": 0.5, "_step": 3, "_timestamp": 12.5}, old=True)
    (row,) = all_rows(reader_of(tmp_path, old))
    assert (row.step, row.time, row.values) == (3, 12.5, [(Target("loss"), 0.5)])


def test_nested_keys_are_joined_by_dots(tmp_path: Path) -> None:
    own = Keys(rules_of(["loss=a[.]b", "grad_norm=a"]))
    record = wb.history([(["a", "b"], 1.5), (["a"], 2.5), (["a", "c"], 3.5)], 1)
    (row,) = all_rows(WandbReader(written(tmp_path, wb.log([record])), own))
    assert dict(row.values) == {Target("loss"): 1.5, Target("grad_norm"): 2.5}


NO_VALUES = ("1.5", None, True, [1], {"_type": "image-file"}, "x" * 500)


@pytest.mark.parametrize(
    ("logged", "found"),
    [
        ({"train/block 07/load imbalance": 2.0}, {"max_load": 2.0}),
        ({"x" * 200 + "/loss": 2.0}, {"loss": 2.0}),
        *(({"loss": x}, {"loss": x}) for x in (math.nan, math.inf, -math.inf)),
        *(({"loss": x}, {"loss": float(x)}) for x in ("NaN", "Infinity", "-Infinity")),
        *(({"loss": x, "lr": 1.0}, {"learning_rate": 1.0}) for x in NO_VALUES),
    ],
)
def test_numbers_of_any_key_are_read_and_nothing_else(
    tmp_path: Path, logged: dict[str, object], found: dict[str, float]
) -> None:
    assert repr(rows_of(tmp_path, wb.history(logged, 1))) == repr({1: found})


def test_items_of_any_order_and_kind_are_read_alike(tmp_path: Path) -> None:
    chance, names = random.Random(5), {f"router/entropy/{layer}": layer for layer in range(20)}
    records, wanted = [], []
    for step in range(200):
        used = chance.sample([*names], chance.choice((20, 20, 19, 3)))
        logged = {name: chance.choice((step / 3, -0.0, 1e300)) for name in used}
        odd = dict.fromkeys((name for name in used if chance.random() < 0.01), "text")
        items = [*(logged | odd | {"_timestamp": 7.5, "_step": 3, "hist": [step] * 90}).items()]
        chance.shuffle(items)
        records.append(wb.history(dict(items), step))
        wanted.append({names[name]: x for name, x in logged.items() if name not in odd})
    rows = all_rows(reader_of(tmp_path, *records))
    found = [{target.layer: number for target, number in row.values} for row in rows]
    assert [repr(sorted(row.items(), key=str)) for row in found] == [
        repr(sorted(row.items(), key=str)) for row in wanted
    ]
    assert {row.time for row in rows} == {7.5}


def test_the_step_is_of_the_record_else_of_its_item_else_the_next(tmp_path: Path) -> None:
    found = rows_of(
        tmp_path,
        wb.history({"loss": 1.0, "_step": 9}, 5),
        wb.history({"loss": 2.0, "_step": 7}),
        wb.history({"loss": 3.0}),
        wb.history({"loss": 4.0}, 0),
        wb.history({"loss": 5.0}, -1),
    )
    assert found == {n: {"loss": loss} for n, loss in zip((5, 7, 8, 0), (1, 2, 3, 4), strict=True)}


def test_zeros_that_a_crash_left_are_skipped(tmp_path: Path) -> None:
    data = wb.log([wb.history({"loss": 1.0}, 1)])
    hole = data + bytes(BLOCK_BYTES - len(data))
    chunk = wb.log([wb.history({"loss": 2.0}, 2)])[7:]
    reader = WandbReader(written(tmp_path, hole + chunk), Keys())
    assert [row.step for row in all_rows(reader)] == [1, 2]


def lying_item() -> bytes:
    item = bytearray(wb.item("loss", 1.25))
    item[-5] += 1
    return wb.part(1, bytes(item))


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (wb.part(2, b"\x0a\x70abc"), "cannot be decoded"),
        (wb.part(2, lying_item()), "has 5 bytes, 4 are left"),
        (wb.part(2, wb.part(1, wb.item("other", 1.25))[:-2]), "longer than its record"),
        (None, r"damaged at byte \d+ \(its checksum is"),
    ],
)
def test_damage_is_reported_last(tmp_path: Path, record: bytes | None, why: str) -> None:
    history = [wb.history({"loss": float(n)}, n) for n in range(3)]
    log = bytearray(wb.log([*history[:2], record] if record else history))
    if record is None:
        log[-10] ^= 1
    reader = WandbReader(written(tmp_path, log), Keys())
    assert [row.step for row in reader.read().rows] == [0, 1]
    for _ in range(2):
        with pytest.raises(Unreadable, match=why):
            reader.read()


def test_a_newer_version_is_refused_by_name(tmp_path: Path) -> None:
    path = written(tmp_path, wb.FILE_HEADER[:-1] + b"\x01")
    assert WandbReader.recognises(path)
    with pytest.raises(Unreadable, match="version 1, this reads version 0"):
        WandbReader(path, Keys()).read()
    with pytest.raises(Unreadable, match="version 1"):
        WandbReader(path, Keys()).sample(5)


def test_a_sample_is_rows_of_the_whole_file_in_order(tmp_path: Path) -> None:
    chance = random.Random(0)
    others = {f"train/other_{i}": chance.random() for i in range(150)}
    records = [wb.run("abc", num_experts=8)]
    for step in range(200):
        row = {**others, "loss": step * 0.5, "moe_entropy/L-0": 0.25}
        records += [wb.history(row, step), wb.part(3, wb.part(1, wb.item("loss", 9.0)))]
    reader = reader_of(tmp_path, *records)
    everything = numbers_of(all_rows(reader_of(tmp_path, *records)))
    rows = reader.sample(20)
    steps = [row.step for row in rows]
    assert steps == sorted(set(steps))
    assert len(steps) == 21  # of 20 places, and of the end
    assert (steps[0], steps[-1]) == (0, 199)
    assert max(b - a for a, b in pairwise(steps)) < 20
    assert numbers_of(rows).items() <= everything.items()
    assert (reader.name, reader.config) == ("abc", {"num_experts": 8})
    assert [row.step for row in all_rows(reader)] == list(range(200))


def test_a_sample_of_rarely_logged_routers_has_routers_and_its_last_ones(tmp_path: Path) -> None:
    others = {f"train/other_{i}": 0.5 for i in range(50)}
    records = [
        wb.history({**others, "loss": 1.0} | ({} if step % 25 else {"moe_entropy/L-0": 0.5}), step)
        for step in range(1, 1011)
    ]
    rows = reader_of(tmp_path, *records).sample(20)
    assert len(rows) == 21
    assert all(row.of_router for row in rows)
    assert rows[-1].step == 1000
    steps = [row.step for row in rows]
    assert max(b - a for a, b in pairwise(steps)) <= 75


@given(
    st.lists(st.integers(0, 3 * BLOCK_BYTES), max_size=8),
    st.integers(-20, 20),
    st.integers(2000, 50_000),
)
@settings(max_examples=60)
def test_records_of_any_length_survive_any_cut(lengths: list[int], edge: int, cut: int) -> None:
    lengths.append(max(0, BLOCK_BYTES - 7 - 7 + edge - sum(lengths) % BLOCK_BYTES))
    records = [bytes([i]) * length for i, length in enumerate([*lengths, 100])]
    data = wb.log(records)
    splitter = RecordSplitter(lambda _: True)
    found = []
    for at in range(0, len(data), cut):
        found += splitter.feed(data[at : at + cut])
    assert found == records
    assert splitter.damage is None


@given(st.lists(st.integers(0, 2 * BLOCK_BYTES), min_size=1, max_size=8), st.integers(1, 8))
@settings(max_examples=60)
def test_reading_from_a_block_gives_the_records_after_it(lengths: list[int], block: int) -> None:
    records = [bytes([i]) * length for i, length in enumerate(lengths)]
    data = wb.log(records)
    splitter = RecordSplitter(lambda _: True, block * BLOCK_BYTES)
    found = splitter.feed(data[block * BLOCK_BYTES :])
    assert splitter.damage is None
    assert found == records[len(records) - len(found) :]
    begun = [len(wb.log(records[:i])) for i in range(len(records))]
    assert len(found) == sum(at >= block * BLOCK_BYTES - 6 for at in begun)
