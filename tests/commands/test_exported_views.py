"""A view as data says what the screen says, opens everywhere, and overwrites nothing."""

import builtins
import csv
import io
import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, strategies as st
from msgspec.structs import replace

from microscope_tui.commands.check.report import judge, verdict_json
from microscope_tui.draw.export import VIEW_COLUMNS, view_csv, view_json, write_csv
from microscope_tui.kit.out import free_name, write_new
from microscope_tui.runlog import RunFile, safe_text
from microscope_tui.scenarios import Shape, write_run
from microscope_tui.watch import RunView, view_of
from tests.conftest import header, open_log, step

Rows = list[dict[str, str]]
NAME = st.text(max_size=20).map(safe_text)


def rows_of(text: str) -> Rows:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture(scope="module")
def collapse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "collapse"
    write_run(folder, "collapse", shape=Shape(routers=5, steps=300), seed=0)
    return folder / "metrics.jsonl"


@pytest.fixture
def collapsed(collapse: Path) -> RunView:
    return view_of(open_log(collapse))


@pytest.fixture
def view(write_log: Any) -> Any:
    """The view of a log of two steps, or of the records that are given."""

    def make(rows: list[list[int]] | None = None, first: Any = None, **changes: Any) -> RunView:
        rows = rows or [[512] * 8, [1024] * 4 + [0] * 4, [512] * 8]
        steps = [step(n, rows, 2048, **changes) for n in (1, 2)]
        return view_of(open_log(write_log([first or header(), *steps])))

    return make


def test_every_expert_of_every_layer_has_a_row(view: Any) -> None:
    bias = [[0.25, -0.5] + [0.0] * 6] * 3
    text = view_csv(view(expert_bias=bias))
    assert text.splitlines()[0] == ",".join(VIEW_COLUMNS)
    rows = rows_of(text)
    assert [(row["layer"], int(row["expert"])) for row in rows] == [
        (f"L{layer}", expert) for layer in (1, 2, 3) for expert in range(8)
    ]
    assert [float(row["load"]) for row in rows[8:16]] == [2.0] * 4 + [0.0] * 4
    assert [int(row["tokens"]) for row in rows[:8]] == [512] * 8
    assert [float(row["expert_bias"]) for row in rows[:3]] == [0.25, -0.5, 0.0]
    assert {(row["run"], row["step"], row["counts_step"]) for row in rows} == {("run", "2", "2")}


def test_counts_of_an_earlier_step_have_its_number(write_log: Any) -> None:
    later = {"kind": "step", "step": 9, "loss": 1.0, "router": {"entropy": [1.0, 1.0, 1.0]}}
    log = write_log([header(), step(1, [[512] * 8] * 3, 2048), later])
    row = rows_of(view_csv(view_of(open_log(log))))[0]
    assert (row["step"], row["counts_step"]) == ("9", "1")


def test_routers_of_the_same_name_stay_apart(view: Any) -> None:
    first = header(model={"layers": [1, 1, 2], "layer_names": ["L1", "L1", "L2"]})
    rows = rows_of(view_csv(view(first=first)))
    assert len({(row["router"], row["expert"]) for row in rows}) == len(rows) == 24


def test_a_layer_without_counts_has_no_rows_but_is_among_the_layers(view: Any) -> None:
    seen = view()
    blind = replace(seen.layers[1], counts=None, load=None, bias=None)
    seen = replace(seen, layers=[seen.layers[0], blind])
    assert {row["layer"] for row in rows_of(view_csv(seen))} == {"L1"}
    assert [layer["layer"] for layer in json.loads(view_json(seen))["layers"]] == ["L1", "L2"]


def test_what_was_not_measured_is_null_and_what_is_not_finite_is_named(view: Any) -> None:
    router = {"entropy": [1.5, None, "NaN"], "max_load": [1.0, 2.0, "Infinity"]}
    losses = {"\x1b]52;c;AAAA\x07": 1.0, "z": "NaN"}
    seen = view(loss="NaN", grad_norm="-Infinity", router=router, losses=losses)
    document = json.loads(view_json(seen), parse_constant=mock.Mock(side_effect=AssertionError))
    assert (document["loss"], document["grad_norm"]) == ("NaN", "-Infinity")
    assert document["losses"] == {"�]52;c;AAAA�": 1.0, "z": "NaN"}
    layers = document["layers"]
    assert [layer["entropy"] for layer in layers] == [1.5, None, "NaN"]
    assert layers[2]["max_load"] == "Infinity"
    assert layers[0]["drop_rate"] is layers[0]["mean_entropy"] is layers[0]["severity"] is None


def test_numbers_keep_all_their_digits(view: Any) -> None:
    seen = view(rows=[[511, 513, 600, 424, 512, 512, 512, 512]] * 3)
    layer = json.loads(view_json(seen))["layers"][0]
    assert layer["balance"] == layer["judged_balance"] == seen.layers[0].balance
    assert layer["effective_experts"] == seen.record.router.effective_experts[0]
    loads = [float(row["load"]) for row in rows_of(view_csv(seen))[:8]]
    assert loads == seen.layers[0].load


def test_a_name_is_never_a_formula_and_a_negative_number_stays_one(view: Any) -> None:
    first = header(model={"layer_names": ['=1+1,"x"', "@SUM(A1)", "-2"]})
    seen = replace(view(first=first, expert_bias=[[-0.5] * 8] * 3), name=" ＝cmd()")
    rows = rows_of(view_csv(seen))
    assert {row["layer"] for row in rows} == {'\'=1+1,"x"', "'@SUM(A1)", "'-2"}
    assert {row["run"] for row in rows} == {"' ＝cmd()"}
    assert {row["expert_bias"] for row in rows} == {"-0.5"}


@given(st.lists(st.none() | st.floats() | NAME, min_size=3, max_size=3), NAME)
def test_any_names_and_numbers_make_a_table_of_the_same_shape(values: list[Any], name: str) -> None:
    file = io.StringIO(newline="")
    write_csv("abcd", [[*values, name]] * 2, file)
    rows = list(csv.reader(io.StringIO(file.getvalue(), newline="")))
    assert [len(row) for row in rows] == [4, 4, 4]
    assert not [cell for cell in rows[1] if cell[:1] in "=+@" and cell]


def test_json_has_the_step_the_layers_and_the_findings(collapse: Path, collapsed: RunView) -> None:
    document = json.loads(view_json(collapsed))
    assert document["schema_version"] == 2
    assert (document["run"], document["step"]) == ("collapse", 300)
    assert document["counts_step"] == document["judged_step"] == 300
    assert document["state"] == "finished"
    assert document["loss"] == collapsed.record.loss  # type: ignore[union-attr]
    layer = document["layers"][-1]
    assert {"layer", "depth", "balance", "judged_balance", "entropy", "severity", "quadrant"} < set(
        layer
    )
    assert len(layer["load"]) == len(layer["tokens_per_expert"]) == layer["num_experts"]
    (run,) = verdict_json([judge(RunFile("collapse", collapse, 0.0))])["runs"]
    assert document["findings"] == json.loads(json.dumps(run["findings"]))
    assert "COLLAPSE" in [finding["rule"] for finding in document["findings"]]


def test_a_run_without_a_step_is_exported_as_nothing_yet(write_log: Any) -> None:
    empty = view_of(open_log(write_log([header()])))
    assert view_csv(empty) == ",".join(VIEW_COLUMNS) + "\n"
    document = json.loads(view_json(empty))
    assert (document["step"], document["counts_step"], document["loss"]) == (0, None, None)
    assert document["layers"] == document["findings"] == []


def test_a_name_that_is_taken_is_numbered_and_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "run-3.csv").symlink_to(tmp_path / "nowhere")
    for name in ("run.csv", "run-2.csv", "run-4.csv"):
        path = free_name(tmp_path, "run", ".csv")
        assert path == tmp_path / name
        write_new(path, f"{name},é\n")
    with pytest.raises(FileExistsError):
        write_new(tmp_path / "run.csv", "other")
    assert (tmp_path / "run.csv").read_bytes() == "run.csv,é\n".encode()
    assert free_name(tmp_path, "run", ".json") == tmp_path / "run.json"
    with pytest.raises(OSError, match="No such file"):
        write_new(free_name(tmp_path / "gone", "run", ".csv"), "")


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("a/b L4 step 450", "a-b-L4-step-450.svg"),
        *(("../../etc/passwd", "etc-passwd.svg"), (".hidden", "hidden.svg"), ("-rf", "rf.svg")),
        *(("…", "view.svg"), ("", "view.svg"), ("x" * 80, "x" * 80 + ".svg")),
        ("x" * 100 + "-450-main", "x" * 40 + "-" + "x" * 30 + "-450-main.svg"),
    ],
)
def test_a_name_is_plain(tmp_path: Path, stem: str, name: str) -> None:
    assert free_name(tmp_path, stem, ".svg").name == name


@given(st.text(max_size=200))
def test_any_stem_stays_in_its_folder(stem: str) -> None:
    folder = Path("/nowhere")
    path = free_name(folder, stem, ".csv")
    assert path.parent == folder
    assert path.name.isascii()
    assert path.name[0] not in ".-"
    assert len(path.stem) <= 80


def test_half_a_file_is_removed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            raise OSError(28, "No space left on device")

    def opened(path: Path, mode: str) -> Any:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        return Full()

    path = tmp_path / "run.csv"
    monkeypatch.setattr(builtins, "open", opened)
    with pytest.raises(OSError, match="No space"):
        write_new(path, "text")
    monkeypatch.undo()
    assert not path.exists()
