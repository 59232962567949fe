"""CSV: wide and long tables, as they are written, damaged and foreign."""

import math
from pathlib import Path

import pytest

from microscope_tui.sources import CsvReader, Keys, Unreadable, rules_of
from tests.sources.reading import all_rows, counts_of, translated, values
from tests.sources.sound import RUN, SOUND, csv, rows

recognises = CsvReader.recognises
(CSV,) = (sound for sound in SOUND if sound.form == "csv")
WIDE = csv(RUN).decode()
LONG = "step,key,value\n" + "".join(
    f"{step},{key},{value}\n" for step, _, row in rows(RUN) for key, value in row.items()
)


def table(folder: Path, text: str) -> Path:
    path = folder / "metrics.csv"
    path.write_bytes(text.encode())
    return path


def read(folder: Path, text: str) -> list[tuple[int, str, int | None, int | None, float]]:
    return values(all_rows(CsvReader(table(folder, text), Keys())))


@pytest.mark.parametrize(
    "text",
    [WIDE, WIDE.replace(",", ";"), WIDE.replace(",", "\t"), LONG, "\ufeff" + WIDE],
    ids=["wide", "semicolons", "tabs", "long", "byte order mark"],
)
def test_wide_and_long_tables_give_the_counts_that_were_written(tmp_path: Path, text: str) -> None:
    path = table(tmp_path, text)
    assert recognises(path)
    assert counts_of(translated(CsvReader(path, Keys()))) == CSV.steps(RUN)


def test_line_ends_of_windows_and_quoted_keys_are_read(tmp_path: Path) -> None:
    text = 'step,"block 03/load imbalance"\r\n1,"1.5"\r\n'
    assert recognises(table(tmp_path, text))
    assert read(tmp_path, text) == [(1, "max_load", 3, None, 1.5)]


def test_the_time_is_read_and_is_not_a_number_of_a_router(tmp_path: Path) -> None:
    own = Keys(rules_of(["max_load=.*"]))
    (row,) = all_rows(CsvReader(table(tmp_path, "time,step,x\n12.5,1,2\n"), own))
    assert (row.time, values([row])) == (12.5, [(1, "max_load", None, None, 2.0)])


def test_empty_fields_are_no_values_and_nan_is_one(tmp_path: Path) -> None:
    found = read(tmp_path, "step,loss,lr\n1,,0.5\n2,nan,\n3,-inf,x\n4,,\n")
    assert [cell[:2] for cell in found] == [(1, "learning_rate"), (2, "loss"), (3, "loss")]
    assert math.isnan(found[1][4])
    assert found[2][4] == -math.inf


def test_rows_of_another_length_are_counted_and_skipped(tmp_path: Path) -> None:
    reader = CsvReader(table(tmp_path, "step,loss\n1,2\n2\n3,4,5\nx,6\n-1,7\n4,8\n"), Keys())
    assert [row.step for row in all_rows(reader)] == [1, 4]
    assert reader.defects.count == 4
    assert reader.defects.first[0] == "line 3: 1 fields for 2 columns"


def test_a_table_sorted_by_key_is_refused_not_read_as_restarts(tmp_path: Path) -> None:
    cells = [f"{step},{key},1\n" for key in ("loss", "moe_entropy/L-0") for step in (1, 2, 3)]
    with pytest.raises(Unreadable, match="sorted by key; sort them by step"):
        read(tmp_path, "step,key,value\n" + "".join(cells))


def test_a_long_table_whose_steps_restart_is_read(tmp_path: Path) -> None:
    text = "step,key,value\n5,loss,1\n6,loss,1\n5,loss,2\n6,loss,2\n"
    assert [step for step, *_ in read(tmp_path, text)] == [5, 6, 5, 6]


def test_a_replaced_table_restarts_with_its_own_columns(tmp_path: Path) -> None:
    reader = CsvReader(table(tmp_path, "step,loss\n1,2\n2,3\n"), Keys())
    all_rows(reader)
    table(tmp_path, "lr,step\n0.5,7\n")
    found = reader.read()
    assert found.restarted
    assert values(found.rows) == [(7, "learning_rate", None, None, 0.5)]


@pytest.mark.parametrize("text", ["step,loss\n1,2\n", "a,moe_entropy/L-0\n1,2\n", LONG[:20]])
def test_a_table_without_a_step_or_a_router_is_not_recognised(tmp_path: Path, text: str) -> None:
    assert not recognises(table(tmp_path, text))


@pytest.mark.parametrize("text", ["step,my3\n1,2\n", "step,key,value\n1,my3,2\n"])
def test_a_mapping_makes_a_table_a_source(tmp_path: Path, text: str) -> None:
    path = table(tmp_path, text)
    assert not recognises(path)
    assert recognises(path, rules_of([r"max_load=my(?P<layer>\d+)"]))


def test_a_table_without_a_column_for_the_step_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match=r"no column for the step \(one of step"):
        read(tmp_path, "a,b\n1,2\n")
