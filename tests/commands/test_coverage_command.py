"""``coverage``: its exit codes, its text and its JSON."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Call, header, step

MODEL = {"layers": [1], "layer_names": ["L1"], "num_experts": 4, "top_k": 1}


@pytest.fixture
def log(write_log: Any) -> Path:
    rows = [[[400, 90, 10, 0]], [[380, 110, 10, 0]]]
    steps = [step(n, counts, 500) for n, counts in enumerate(rows, 1)]
    return write_log([header(model=MODEL, profile="eval", run="calib"), *steps])


def test_the_exit_code_says_whether_all_experts_have_enough(call: Call, log: Path) -> None:
    code, out, _ = call("coverage", log, "--min-tokens", "100")
    assert code == 1
    assert "2 of 4 experts have fewer than 100 tokens" in out
    assert call("coverage", log, "--min-tokens", "1", "--steps", "1:1")[0] == 1
    found = json.loads(call("coverage", log, "--json")[1])
    experts = found["layers"][0]["experts"]
    assert [one["tokens"] for one in experts] == [780, 200, 20, 0]
    assert experts[1]["more_tokens_low"] < 4000 < experts[1]["more_tokens_high"]


def test_a_covered_run_exits_with_zero(call: Call, write_log: Any) -> None:
    path = write_log([header(model=MODEL), step(1, [[5, 5, 5, 5]], 20)], "even")
    code, out, err = call("coverage", path.parent, "--min-tokens", "5")
    assert (code, err) == (0, "")
    assert "All 4 experts have at least 5 tokens" in out


@pytest.mark.parametrize(
    ("steps", "tokens"), [("1:1", 500), ("2:", 500), (":1", 500), ("1:2", 1000), (":", 1000)]
)
def test_a_range_of_steps_may_be_open(call: Call, log: Path, steps: str, tokens: int) -> None:
    _, out, _ = call("coverage", log, "--steps", steps, "--json")
    assert json.loads(out)["layers"][0]["tokens"] == tokens


def test_sequences_are_counted_where_the_header_has_their_length(call: Call, log: Path) -> None:
    assert "sequences" not in call("coverage", log.with_name("routing.bin"))[1]
    header = '"kind": "run", "config": {"seq_len": 250}'
    log.write_text(log.read_text().replace('"kind": "run"', header, 1))
    code, out, _ = call("coverage", log.with_name("routing.bin"))
    assert "sequences of 250" in out
    assert code == 1


def test_without_counts_there_is_no_coverage(call: Call, log: Path, write_log: Any) -> None:
    code, out, err = call("coverage", log, "--steps", "10:")
    assert (code, out) == (3, "")
    assert "no counts in --steps" in err
    bare = write_log([header(), {"kind": "step", "step": 1}], name="bare")
    code, out, err = call("coverage", bare)
    assert (code, out) == (3, "")
    assert "no step with counts" in err
