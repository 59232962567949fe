"""``coverage`` as a program: its exit codes, its text and its JSON."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from microscope_tui.routing import RoutingWriter, Shape

Run = Callable[..., CompletedProcess[str]]
MODEL = {"layers": [1], "layer_names": ["L1"], "num_experts": 4, "top_k": 1}


@pytest.fixture
def log(write_log: Any, make_header: Any, make_step: Any) -> Path:
    rows = [[[400, 90, 10, 0]], [[380, 110, 10, 0]]]
    steps = [make_step(n, counts, 500) for n, counts in enumerate(rows, 1)]
    path: Path = write_log([make_header(model=MODEL, profile="eval", run="calib"), *steps])
    return path


def test_the_exit_code_tells_whether_all_experts_have_enough(microscope: Run, log: Path) -> None:
    some = microscope("coverage", log, "--min-tokens", "100")
    assert some.returncode == 1
    assert "2 of 4 experts have fewer than 100 tokens" in some.stdout
    assert microscope("coverage", log, "--min-tokens", "1", "--steps", "1:1").returncode == 1
    found = json.loads(microscope("coverage", log, "--json").stdout)
    experts = found["layers"][0]["experts"]
    assert [one["tokens"] for one in experts] == [780, 200, 20, 0]
    assert experts[1]["more_tokens_low"] < 4000 < experts[1]["more_tokens_high"]


def test_a_covered_run_exits_with_zero(
    microscope: Run, write_log: Any, make_header: Any, make_step: Any
) -> None:
    path = write_log([make_header(model=MODEL), make_step(1, [[5, 5, 5, 5]], 20)], "even")
    done = microscope("coverage", path.parent, "--min-tokens", "5")
    assert (done.returncode, done.stderr) == (0, "")
    assert "All 4 experts have at least 5 tokens" in done.stdout


def test_sequences_of_a_probe_are_its_windows(microscope: Run, log: Path) -> None:
    shape = Shape((1,), ("L1",), 4, 1, 1000)
    writer = RoutingWriter(log.with_name("routing.bin"), shape)
    writer.put_tokens([0] * 1000, [b"a"] * 1000, [0] * 1000, [n // 100 for n in range(1000)])
    writer.put("ids", 0, 0, struct.pack("<1000B", *([0] * 1000)))
    writer.finish()
    for path in (log.parent, log.with_name("routing.bin")):
        done = microscope("coverage", path)
        assert "sequences of 100" in done.stdout
        assert done.returncode == 1


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (("--min-tokens", "0"), 64, "write a number from 1"),
        (("--steps", "7"), 64, "write A:B"),
        (("--steps", "9:3"), 64, "write A:B"),
        (("--steps", "10:"), 3, "no counts in --steps"),
    ],
)
def test_what_cannot_be_measured_is_said_and_coded(
    microscope: Run, log: Path, arguments: tuple[str, ...], code: int, why: str
) -> None:
    done = microscope("coverage", log, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert why in done.stderr


def test_a_run_without_counts_has_no_coverage(
    microscope: Run, write_log: Any, make_header: Any
) -> None:
    done = microscope("coverage", write_log([make_header(), {"kind": "step", "step": 1}]))
    assert (done.returncode, done.stdout) == (3, "")
    assert "no step with counts" in done.stderr
