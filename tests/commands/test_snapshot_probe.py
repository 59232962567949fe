"""``snapshot`` of the screens of a probe: text, data and pictures, and the message without one."""

import json
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.extensions.anatomy.routing_file import Routing
from microscope_tui.runlog import ROUTING_NAME
from tests.conftest import Call
from tests.probed import SLICES, write_probed


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_probed(tmp_path_factory.mktemp("logs") / "probe")


def test_the_tokens_as_text(probed: Path, call: Call) -> None:
    arguments = ("--screen", "tokens", "--token", 1200, "--layer", "L3")
    code, out, _ = call("snapshot", probed, *arguments)
    assert code == 0
    assert "  L3 3 of 6   token 1,200 of" in out
    with Routing(probed / ROUTING_NAME) as routing:
        assert f"expert {routing.choice(2, 1200).experts[0]} " in out


def test_the_slices_as_data(probed: Path, call: Call) -> None:
    arguments = ("--screen", "slices", "--format", "json", "--layer")
    code, out, _ = call("snapshot", probed, *arguments, "L2")
    found = json.loads(out)
    assert (code, found["layer"]) == (0, "L2")
    assert [one["slice"] for one in found["slices"]] == list(SLICES)
    with Routing(probed / ROUTING_NAME) as routing:
        for row in found["experts"]:
            assert row["counts"] == [rows[1][row["expert"]] for rows in routing.tables.counts]
        assert found["identity"] == routing.tables.identity[1]
    assert call("snapshot", probed, *arguments, "L99")[0] == 3


@pytest.mark.parametrize("screen", ["tokens", "slices"])
def test_without_a_probe_it_says_how_to_make_one(call: Call, scenario: Any, screen: str) -> None:
    run = scenario("healthy", routers=3, steps=20)
    for form in ("text", "svg"):
        code, out, err = call("snapshot", run, "--screen", screen, "--format", form)
        assert (code, out) == (3, "")
        assert "no probe; moe-microscope probe MODEL TEXT makes one" in err


def test_what_does_not_exist_is_refused(probed: Path, call: Call) -> None:
    with Routing(probed / ROUTING_NAME) as routing:
        tokens = routing.tokens
    refused = [
        ("--token", tokens, f"no token {tokens:,}"),
        ("--token", -1, "no token -1"),
        ("--layer", "L99", "no layer 'L99': there are L1, L2"),
        ("--expert", 16, "no expert 16"),
    ]
    for option, value, why in refused:
        code, out, err = call("snapshot", probed, "--screen", "tokens", option, value)
        assert (code, out) == (3, "")
        assert why in err


def test_a_damaged_file_is_refused(tmp_path: Path, probed: Path, call: Call) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_bytes((probed / "metrics.jsonl").read_bytes())
    (run / ROUTING_NAME).write_bytes((probed / ROUTING_NAME).read_bytes()[:-9])
    code, _, err = call("snapshot", run, "--screen", "slices")
    assert code == 3
    assert "cut off or damaged" in err
