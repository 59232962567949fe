"""``placement``: its exit codes, its text, its files, and what it refuses in one line."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Call, header, step

UNEVEN = np.array([8, 8, 1, 1, 1, 1, 2, 2])
MODEL = {"layers": [1, 2], "num_experts": 8, "top_k": 1}


def log_of(write_log: Any, shares: np.ndarray, name: str = "run", **more: Any) -> Path:
    rng = np.random.default_rng(0)
    steps = []
    for number in range(1, 65):
        counts = rng.multinomial(1_000, shares / shares.sum(), 2).tolist()
        steps.append(step(number, counts, 1_000))
    return write_log([header(model=MODEL, run=name, **more), *steps], name)


@pytest.fixture
def log(write_log: Any) -> Path:
    return log_of(write_log, UNEVEN)


def test_the_exit_code_says_whether_a_placement_pays(call: Call, log: Path, write_log: Any) -> None:
    code, out, err = call("placement", log, "--ranks", "4")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "It pays."
    even = log_of(write_log, np.ones(8), "even")
    code, out, _ = call("placement", even, "--ranks", "4")
    assert code == 1
    assert "does not pay: the gain is below 0.01" in out
    slow = ("--expert-bytes", "1e15", "--step-time", "1")
    assert call("placement", log, "--ranks", "4", *slow)[0] == 1


def test_a_sick_run_is_repaired_before_its_experts_are_placed(
    call: Call, scenario: Any, tmp_path: Path
) -> None:
    sick, file = scenario("collapse", routers=3), tmp_path / "map.json"
    options = ("--ranks", "4", "--write", "ascend", file)
    code, out, _ = call("placement", sick, *options)
    found = re.fullmatch(r"Repair first: (COLLAPSE in L\d); its loads will.*", out.splitlines()[-1])
    assert (code, found is not None, json.loads(file.read_text())["moe_layer_count"]) == (
        1,
        True,
        3,
    )
    page = call("snapshot", sick, "--screen", "placement", "--ranks", "4")[1]
    assert f"repair first: {found[1]}" in page
    code, out, _ = call("placement", sick, "--ranks", "4", "--json")
    data = json.loads(out)
    assert (code, data["pays"], data["repair_first"]) == (1, False, found[1])


def test_a_warning_does_not_keep_experts_from_being_placed(call: Call, scenario: Any) -> None:
    warned = scenario("rank-skew", routers=3)
    assert call("check", warned)[0] == 1
    code, out, _ = call("placement", warned, "--ranks", "4", "--json")
    data = json.loads(out)
    assert (code, data["pays"], data["repair_first"]) == (0, True, None)


def test_the_ranks_are_those_of_the_run_where_none_are_given(call: Call, write_log: Any) -> None:
    shared = log_of(write_log, UNEVEN, "shared", expert_parallel_size=4)
    assert call("placement", shared) == call("placement", shared, "--ranks", "4")


def test_json_holds_the_placements_and_what_they_are_worth(call: Call, log: Path) -> None:
    code, out, _ = call("placement", log, "--ranks", "4", "--replicas", "4", "--json")
    found = json.loads(out)
    before, after = found["today"], found["chosen"]
    assert (code, found["pays"], found["reason"]) == (0, True, None)
    assert (found["fit"], found["score"]) == ([1, 32, 32], [33, 64, 32])
    assert before["placements"][0] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert before["held_out"] < found["published"]["held_out"] <= 1
    assert sorted({e for rank in after["placements"][1] for e in rank}) == list(range(8))
    assert found["gain"]["mean"] == pytest.approx(after["held_out"] - before["held_out"])
    assert [layer["layer"] for layer in found["layers"]] == ["L1", "L2"]


@pytest.mark.parametrize("form", ["sglang", "tensorrt-llm", "ascend"])
def test_a_written_placement_is_scored_like_the_one_that_was_found(
    call: Call, log: Path, tmp_path: Path, form: str
) -> None:
    file, ranks = tmp_path / "placement", ("--ranks", "4", "--replicas", "0")
    every = ("--hidden-layers", "3", "--json")
    first = json.loads(call("placement", log, *ranks, "--write", form, file, *every)[1])
    again = json.loads(call("placement", log, *ranks, "--check", file, *every)[1])
    assert again["chosen"] == first["chosen"] | {"name": "file"}


def test_a_placement_without_a_gain_is_written(call: Call, tmp_path: Path, write_log: Any) -> None:
    even, file = log_of(write_log, np.ones(8)), tmp_path / "map.json"
    code, _, err = call("placement", even, "--ranks", "4", "--write", "ascend", file)
    said = ", of layers at depth 1, 2; give it to additional_config.eplb_config.expert_map_path"
    assert (code, err.partition("map.json")[2].strip()) == (1, said)
    assert json.loads(file.read_text())["moe_layer_count"] == 2


def test_two_copies_on_a_rank_are_scored_and_counted(call: Call, log: Path, tmp_path: Path) -> None:
    file = tmp_path / "map.json"
    file.write_text(
        json.dumps({"physical_to_logical_map": [[0, 0, 1, 2, 3, 4, 5, 6, 7, 7, 1, 2]] * 3})
    )
    _, out, _ = call("placement", log, "--ranks", "4", "--check", file)
    assert "8 experts and 4 extra copies on 4 ranks, 3 on each" in out
    (row,) = [line.split() for line in out.splitlines() if line.startswith("file")]
    assert row[-1] == "2"  # one in each layer
    code, _, err = call("placement", log, "--ranks", "4", "--replicas", "8", "--check", file)
    assert (code, "4 extra copies, not 8" in err) == (64, True)


def test_the_log_itself_is_never_written_over(call: Call, log: Path) -> None:
    before = log.read_text()
    for target in (log, "-"):
        code, _, err = call("placement", log, "--ranks", "4", "--write", "ascend", target)
        assert (code, "name a new file" in err, log.read_text()) == (64, True, before)


def test_a_file_needs_counts_of_every_layer(call: Call, log: Path, tmp_path: Path) -> None:
    text = log.read_text().replace("[1, 2]", "[1, 2, 5]").replace("]], ", "], null], ")
    log.write_text(text.replace("]]}", "], null]}"))
    assert call("placement", log, "--ranks", "4")[0] == 0
    code, _, err = call("placement", log, "--ranks", "4", "--write", "ascend", tmp_path / "x")
    assert (code, ": no counts, and a file of an engine" in err) == (64, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--ranks 3", "8 experts and 0 extra copies do not divide by 3 ranks; --replicas 1 would"),
        ("--ranks 16", "--replicas 8 would"),
        ("--ranks 4 --replicas 25", "--replicas 25: at most 24 fit"),
        ("--ranks 4 --nodes 3", "--nodes 3: 4 ranks do not divide by it"),
        ("--ranks 4 --groups 3", "--groups 3: 8 experts do not divide by it"),
        ("--ranks 0", "--ranks 0: write a number from 1 up"),
        ("--ranks 4 --fit 100:", "no counted step to fit a placement to"),
        ("--ranks 4 --score 1:10", "no counted step to fit a placement to"),
        ("--ranks 4 --fit 1:64", "no counted step is left to score"),
        ("--ranks 4 --fit 1:40 --score 30:64", "overlap"),
        ("--ranks 4 --fit 9", "--fit 9: write A:B"),
        ("--ranks 4 --expert-share 2", "--expert-share"),
        ("--ranks 4 --expert-bytes 1 --step-time nan", "--step-time from 0 up"),
        ("--ranks 4 --expert-bytes inf", "--expert-bytes and"),
        ("--ranks 4 --write sglang x.json", "--hidden-layers"),
        ("--ranks 4 --write other x.json", "other"),
        ("--ranks 4 --check missing.json", "missing.json: No such file"),
        ("", "--ranks"),
    ],
)
def test_what_cannot_be_placed_is_a_usage_error_in_one_line(
    call: Call, log: Path, tmp_path: Path, monkeypatch: Any, options: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call("placement", log, *options.split())
    assert (code, out) == (64, "")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "x.json").exists()


def test_without_counts_nothing_can_be_placed(call: Call, write_log: Any, tmp_path: Path) -> None:
    bare = write_log([header(model=MODEL), {"kind": "step", "step": 1}], "bare")
    for path in (bare, tmp_path / "nothing"):
        code, out, err = call("placement", path, "--ranks", "4")
        assert (code, out) == (3, "")
    assert "no such file" in err


def test_layers_of_different_sizes_are_named_as_such(call: Call, write_log: Any) -> None:
    rows = [[[9, 1, 1, 1], [5, 1, 1, 1, 1, 1, 1, 1]]] * 64
    steps = [step(at, row, 12) for at, row in enumerate(rows, 1)]
    path = write_log([header(model=MODEL | {"num_experts": [4, 8]}), *steps], "mixed")
    out = call("placement", path, "--ranks", "4")[1]
    assert "2 layers of 4 to 8 experts on 4 ranks, 1 to 2 on each" in out


def test_shares_and_rarely_counted_steps_work_and_are_said(call: Call, write_log: Any) -> None:
    path = log_of(write_log, UNEVEN, "shares", source={"counts": "shares"})
    assert "note: the counts are shares" in call("placement", path, "--ranks", "4")[1]
    sparse = [json.loads(line) for line in path.read_text().splitlines()]
    for record in sparse[1:]:
        record["step"] *= 100
    path = write_log(sparse, "sparse")
    out = call("placement", path, "--ranks", "4")[1]
    assert "fitted to steps 100 to 3,200 (32 counted)" in out
    (heads,) = [line.split() for line in out.splitlines() if line.startswith("steps since")]
    assert heads[4:] == ["100", "300", "1,000"]
