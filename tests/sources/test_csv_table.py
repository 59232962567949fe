"""CSV: wide and long tables, live, damaged and foreign."""

import csv
import io
import math
from pathlib import Path

import pytest

from microscope_tui.sources import FORMATS, CsvReader, Keys, Unreadable, rules_of
from tests.sources.tables import (
    all_rows,
    counts_row,
    plain,
    run_of,
    same_as_the_run_log,
    values,
)

recognises = CsvReader.recognises


def wide(separator: str = ",") -> str:
    """Three steps as ``csv.DictWriter`` writes them."""
    text = io.StringIO()
    rows = [{"step": step, "time": 100.0 + step, **counts_row(step)} for step in (1, 2, 3)]
    writer = csv.DictWriter(text, list(rows[0]), delimiter=separator, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def long() -> str:
    rows = [
        f"{step},{key},{value}\n" for step in (1, 2, 3) for key, value in counts_row(step).items()
    ]
    return "step,key,value\n" + "".join(rows)


def table(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("text", [wide(), wide(";"), wide("\t"), long(), "\ufeff" + wide()])
def test_wide_and_long_tables_give_the_counts_that_were_written(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = table(tmp_path / "metrics.csv", text)
    assert recognises(path)
    assert FORMATS["csv"].place_of(path) == path
    run, steps = run_of(CsvReader(path, Keys()), monkeypatch, top_k=2)
    same_as_the_run_log(steps)
    assert run.counts == "exact"


def test_line_ends_of_windows_and_quoted_keys_are_read(tmp_path: Path) -> None:
    path = table(tmp_path / "m.csv", 'step,"block 03/load imbalance"\r\n1,"1.5"\r\n')
    assert recognises(path)
    assert values(all_rows(CsvReader(path, Keys()))) == [(1, "max_load", 3, None, 1.5)]


def test_empty_fields_are_no_values_and_nan_is_one(tmp_path: Path) -> None:
    path = table(tmp_path / "m.csv", "step,loss,lr\n1,,0.5\n2,nan,\n3,-inf,x\n4,,\n")
    found = values(all_rows(CsvReader(path, Keys())))
    assert [(step, name) for step, name, *_ in found] == [
        (1, "learning_rate"),
        (2, "loss"),
        (3, "loss"),
    ]
    assert math.isnan(found[1][4])
    assert found[2][4] == -math.inf


def test_rows_of_another_length_are_counted_and_skipped(tmp_path: Path) -> None:
    path = table(tmp_path / "m.csv", "step,loss\n1,2\n2\n3,4,5\nx,6\n-1,7\n4,8\n")
    reader = CsvReader(path, Keys())
    assert [row.step for row in all_rows(reader)] == [1, 4]
    assert reader.defects.count == 4
    assert reader.defects.first[0] == "line 3: 1 fields for 2 columns"


def test_a_table_sorted_by_key_is_refused_not_read_as_restarts(tmp_path: Path) -> None:
    rows = [f"{step},{key},1\n" for key in ("loss", "moe_entropy/L-0") for step in (1, 2, 3)]
    reader = CsvReader(table(tmp_path / "m.csv", "step,key,value\n" + "".join(rows)), Keys())
    with pytest.raises(Unreadable, match="sorted by key; sort them by step"):
        all_rows(reader)


def test_a_long_table_whose_steps_restart_is_read(tmp_path: Path) -> None:
    text = "step,key,value\n5,loss,1\n6,loss,1\n5,loss,2\n6,loss,2\n"
    rows = all_rows(CsvReader(table(tmp_path / "m.csv", text), Keys()))
    assert [row.step for row in rows] == [5, 6, 5, 6]


@pytest.mark.parametrize("cut", range(0, 160, 7))
def test_a_torn_number_waits_for_its_end(tmp_path: Path, cut: int) -> None:
    data = b"step,loss,moe_entropy/L-0\n" + b"".join(b"%d,%d.125,1.5\n" % (i, i) for i in range(9))
    path = tmp_path / "m.csv"
    path.write_bytes(data)
    whole = plain(all_rows(CsvReader(path, Keys())))
    path.write_bytes(data[:cut])
    reader = CsvReader(path, Keys())
    rows = list(reader.read().rows)
    with path.open("ab") as file:
        file.write(data[cut:])
    assert plain(rows + list(reader.read().rows)) == whole


def test_a_replaced_table_restarts_with_its_own_columns(tmp_path: Path) -> None:
    path = table(tmp_path / "m.csv", "step,loss\n1,2\n2,3\n")
    reader = CsvReader(path, Keys())
    all_rows(reader)
    table(path, "lr,step\n0.5,7\n")
    found = reader.read()
    assert found.restarted
    assert values(list(found.rows)) == [(7, "learning_rate", None, None, 0.5)]


@pytest.mark.parametrize(
    "content",
    [b"", b"step", b"step,loss\n1,2\n", b"a,moe_entropy/L-0\n1,2\n", b"step,key,value\n1,loss,2\n"],
)
def test_a_table_without_a_step_or_a_router_is_not_recognised(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    assert not recognises(path)


def test_a_mapping_makes_a_table_a_source(tmp_path: Path) -> None:
    own = rules_of([r"max_load=my(?P<layer>\d+)"])
    assert recognises(table(tmp_path / "a.csv", "step,my3\n1,2\n"), own)
    assert recognises(table(tmp_path / "b.csv", "step,key,value\n1,my3,2\n"), own)


def test_a_table_without_a_column_for_the_step_is_refused_in_one_line(tmp_path: Path) -> None:
    reader = CsvReader(table(tmp_path / "m.csv", "a,b\n1,2\n"), Keys())
    with pytest.raises(Unreadable, match=r"no column for the step \(one of step"):
        reader.read()


def test_huge_fields_are_defects(tmp_path: Path) -> None:
    text = 'step,loss\n1,"' + "9" * 200_000 + '"\n2,1\n'
    reader = CsvReader(table(tmp_path / "m.csv", text), Keys())
    assert [row.step for row in all_rows(reader)] == [2]
    assert "field larger" in reader.defects.first[0]
