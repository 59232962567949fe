"""``export`` writes a run as a table that other programs read."""

import csv
import io
import resource
from pathlib import Path
from typing import Any

import pytest

from microscope_tui import measures
from microscope_tui.commands.console import USAGE
from microscope_tui.draw.export import ROUTER_COLUMNS, rows_of
from microscope_tui.runlog import RunFile
from tests.conftest import Call, header, step
from tests.sources.truth import GOLDEN

ROWS = [[900, 100, 0, 0], [250, 250, 250, 250]]


@pytest.fixture
def log(write_log: Any) -> Path:
    """A run of two routers whose step 2 is superseded by a restart."""
    model = {"layers": [1, 2], "layer_names": ["L1", "=2+5"], "num_experts": 4, "top_k": 1}
    first = [step(n, ROWS, 1000, expert_bias=[[0.5, 0, 0, 0], []]) for n in (1, 2)]
    again = header(model=model, resumed_at_step=2)
    second = [step(n, ROWS[::-1], 1000, loss=float("nan")) for n in (2, 3)]
    return write_log([header(model=model), *first, again, *second])


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_row_per_step_and_router_without_superseded_steps(call: Call, log: Path) -> None:
    code, out, _ = call("export", log)
    assert code == 0
    rows = table(out)
    assert [(row["step"], row["router"]) for row in rows] == [
        (step, router) for step in "123" for router in "01"
    ]
    assert float(rows[0]["router.max_load"]) == measures.max_load(ROWS[0])
    c = measures.collapse_index(measures.effective_experts(ROWS[0]), 4, 1)
    assert float(rows[0]["balance"]) == pytest.approx(c)
    assert rows[2]["balance"] == rows[1]["balance"]  # the rows were swapped
    assert rows[0]["router.entropy"] == ""
    assert rows[2]["loss"] == "NaN"
    assert rows[1]["layer"] == "'=2+5", "a name never becomes a formula"


def test_a_row_per_expert_holds_its_count_and_bias(call: Call, log: Path) -> None:
    rows = table(call("export", log, "--experts")[1])
    assert len(rows) == 3 * 2 * 4
    assert [int(row["tokens_per_expert"]) for row in rows[:4]] == ROWS[0]
    assert [row["expert_bias"] for row in rows[:5]] == ["0.5", "0.0", "0.0", "0.0", ""]


def test_a_file_holds_what_is_printed(call: Call, log: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.csv"
    assert call("export", log, "-o", file) == (0, "", f"moe-microscope: written: {file}\n")
    assert file.read_text() == call("export", log)[1]


@pytest.mark.parametrize(("name", "given"), [("x.csv", "parquet"), ("x.parquet", "csv")])
def test_a_table_whose_name_contradicts_the_format_is_refused(
    call: Call, log: Path, tmp_path: Path, name: str, given: str
) -> None:
    path = tmp_path / name
    code, _, err = call("export", log, "-o", path, "--format", given)
    assert (code, f"the name ends in {path.suffix}, but --format is {given}" in err) == (64, True)
    assert not path.exists()
    assert call("export", log, "-o", tmp_path / "table.txt", "--format", "csv")[0] == 0


def test_parquet_holds_the_same_rows_with_types(call: Call, log: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "run.parquet"
    assert call("export", log, "-o", out)[0] == 0  # its name says the format
    found = parquet.read_table(out)
    assert found.column_names == list(ROUTER_COLUMNS)
    expected = [list(row) for row in rows_of(RunFile("run", log, 0.0))]
    for row, values in zip(expected, found.to_pylist(), strict=True):
        assert [str(value) for value in row[:5]] == [str(v) for v in list(values.values())[:5]]
        assert values["balance"] == row[ROUTER_COLUMNS.index("balance")]


@pytest.mark.parametrize(
    "command",
    [
        ("export", "run", "-o", "old"),
        ("export", "run", "--format", "parquet", "-o", "old"),
        ("snapshot", "run", "-o", "old"),
        ("placement", "run", "--ranks", 2, "--hidden-layers", 3, "--write", "sglang", "old"),
        ("import", GOLDEN / "wandb", "new"),
    ],
    ids=str,
)
def test_a_full_disk_is_named_and_keeps_the_file_that_was_there(
    call: Call, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old").write_text("kept")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))  # as a disk of 20 bytes
    try:
        code, _, err = call(*(log if word == "run" else word for word in command))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == USAGE, err
    assert ": cannot be written: File too large; choose another path" in err
    assert str(log) not in err
    assert Path("old").read_text() == "kept"
    assert not [*Path.cwd().rglob("*.part"), *Path.cwd().rglob("new/*")]


def test_a_run_without_a_step_or_counts_has_nothing_to_export(call: Call, write_log: Any) -> None:
    code, _, err = call("export", write_log([header()]))
    assert code == 3
    assert "holds no step" in err
    bare = write_log([header(), {"kind": "step", "step": 1}], name="bare")
    code, _, err = call("export", bare, "--experts")
    assert code == 3
    assert "holds no step with counts" in err
