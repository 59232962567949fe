"""``check --format-only``: what the project and its documentation write is clean, files of any kind
end in a report, and a report stays readable however bad the log is."""

import gzip
import json
import math
import os
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from microscope_tui.commands.check.format_check import (
    check_format,
    exit_code,
    format_json,
    format_text,
)
from microscope_tui.commands.check.report import judge
from microscope_tui.probe import RunRecorder
from microscope_tui.runlog import RunFile, records as tables, safe_text, tail, validate
from microscope_tui.runlog.validate import SAID_IN_FULL
from tests.conftest import header
from tests.problems import problems_in

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "run-log.md"
SUMMARIES = tables.RouterSummary.__struct_fields__


def blocks(language: str) -> list[str]:
    text = DOCUMENT.read_text(encoding="utf-8")
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [code for name, code in fences if name == language]


@pytest.fixture
def documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    random.seed(0)
    names: dict[str, Any] = {}
    for code in blocks("python"):
        exec(code, names)
    names["log"].file.close()
    return Path("logs/mine")


def test_the_documented_writer_is_short_and_its_log_has_no_problems(documented: Path) -> None:
    assert len(blocks("python")[0].splitlines()) <= 20
    report = check_format(documented)
    assert report.problems == []
    assert exit_code(report) == 0
    file = documented / "metrics.jsonl"
    judgement = judge(RunFile("mine", file, file.stat().st_mtime))
    assert (judgement.exit_code, judgement.last_step, judgement.notes) == (3, 60, [])
    assert judgement.waits_until == 100
    assert judgement.problem == "not judged yet (warm-up until step 100)"
    assert format_text(report) + "\n" in blocks("")


def test_the_documented_writer_names_what_is_not_finite(documented: Path) -> None:
    names: dict[str, Any] = {}
    exec(blocks("python")[0], names)
    log = names["RunLog"](documented)
    log.write("step", step=61, loss=math.nan, losses={"aux": -math.inf}, grad_norm=math.inf)
    log.file.close()
    line = (documented / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(line)["losses"] == {"aux": "-Infinity"}
    assert exit_code(check_format(documented)) == 0


def test_the_smallest_documented_log_has_no_problems() -> None:
    (smallest,) = blocks("jsonl")
    assert list(problems_in(enumerate(smallest.encode().splitlines(), 1))) == []


def test_every_key_of_the_format_is_documented() -> None:
    known = {*validate.STEP, *SUMMARIES, *tables.RUN, *tables.MODEL, *tables.EVENT}
    known |= {*tables.BALANCE, *tables.TRAINING, *tables.SOURCE, *tables.SOURCES}
    words = set(re.findall(r"`(\w+)`", DOCUMENT.read_text(encoding="utf-8")))
    assert known <= words


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("healthy", {"num_experts": 64, "top_k": 8, "routers": 3}),
        ("collapse", {"capacity_factor": 1.25, "tokens": 64}),
    ],
)
def test_the_scenarios_write_sound_logs(scenario: Any, name: str, shape: dict[str, Any]) -> None:
    report = check_format(scenario(name, steps=120, **shape))
    assert (format_text(report).count("\n"), report.records["step"]) == (0, 120)


@pytest.mark.parametrize("counts_every", [1, 3])
def test_the_recorder_writes_sound_logs(tmp_path: Path, counts_every: int) -> None:
    model = {"name": "m", "layers": [1, 3], "num_experts": 4, "top_k": 2, "norm_top_k": True}
    for first in (1, 4):  # the second time it is a resumed run
        about: Any = {"model": model, "balance": {"method": "bias", "bias_update_rate": 0.01}}
        resumed = first if first > 1 else None
        about |= {"planned_steps": 9, "resumed_at_step": resumed, "counts_every": counts_every}
        recorder = RunRecorder(tmp_path, run="r", **about)
        for number in range(first, first + 5):
            recorder.record_step(
                step=number,
                loss=math.nan if number == 2 else 2.5,
                tokens=8,
                tokens_per_expert=[[4, 4, 4, 4], [8, 7, 1, 0]],
                expert_bias=[[0.1, -0.1, 0.0, 0.0], []] if number % 2 else None,
                router={"entropy": [0.5, None], "mean_entropy": [0.6, math.nan]},
                losses={"aux": 0.1},
                grad_norm=math.inf,
                tokens_per_s=1e4,
            )
        recorder.record_event(step=first, event="checkpoint", values={"path": "x", "loss": 2.0})
        recorder.close(step=first + 4, reason="stopped")
    report = check_format(tmp_path)
    assert format_text(report).splitlines()[1:] == []
    assert (report.records["run"], report.records["step"]) == (2, 10)


@pytest.mark.parametrize("chunk", [4, 7, 1 << 20])
def test_the_cut_of_the_bytes_changes_nothing(write_log: Any, monkeypatch: Any, chunk: int) -> None:
    lines = [b"\xef\xbb\xbf" + json.dumps(header()).encode(), b"\0\0\0x", b"", b"[1]"]
    path = write_log([*lines, header()])
    path.write_bytes(path.read_bytes() + b'{"kind": "st')
    monkeypatch.setattr("microscope_tui.commands.check.format_check._CHUNK_BYTES", chunk)
    report = check_format(path)
    found = {(p.line, p.code) for p in report.problems}
    expected = {(1, "bom"), (2, "nul"), (2, "json"), (4, "object")}
    assert found == expected
    assert (report.lines, report.records["run"]) == (6, 2)  # the last line may be completed


def test_a_whole_last_line_without_a_newline_is_checked(write_log: Any) -> None:
    path = write_log([header(), {"kind": "step", "step": "1"}])
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    codes = [(p.line, p.code) for p in check_format(path).problems]
    assert codes == [(2, "type step")]


def test_lines_that_are_too_long_are_named(write_log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail.LineSplitter.__init__, "__defaults__", (1000, 0))
    path = write_log([header(), b"x" * 1001, header(), b"y" * 5000])
    report = check_format(path)
    assert [(p.line, p.code) for p in report.problems] == [(2, "overlong"), (4, "overlong")]
    assert report.records["run"] == 2


def test_a_packed_log_is_the_same_log_and_what_cannot_be_read_exits_with_3(
    write_log: Any, tmp_path: Path
) -> None:
    path = write_log([header(), b"broken", {"kind": "event", "event": "end"}])
    packed, zstd = path.with_name("metrics.jsonl.gz"), path.with_name("metrics.jsonl.zst")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    zstd.write_bytes(pytest.importorskip("backports.zstd").compress(path.read_bytes()))
    for archive in (packed, zstd):
        assert check_format(archive).problems == check_format(path).problems
    packed.write_bytes(b"not gzip at all")
    os.mkfifo(tmp_path / "pipe.jsonl")
    for bad in (packed, tmp_path / "missing.jsonl", tmp_path, tmp_path / "pipe.jsonl"):
        report = check_format(bad)
        assert [problem.code for problem in report.problems] == ["unreadable"]
        assert exit_code(report) == 3


def test_other_records_are_allowed_errors_and_empty_logs_are_not(write_log: Any) -> None:
    noted = check_format(write_log([header(), {"kind": "note", "los": 1}], "noted"))
    assert (noted.errors, exit_code(noted)) == (0, 0)
    assert noted.records == {"run": 1, "step": 0, "event": 0, "other": 1}
    wrong = check_format(write_log([header(format_version=2)], "wrong"))
    assert (wrong.errors, exit_code(wrong)) == (1, 3)
    empty = check_format(write_log([{"kind": "note"}], "empty"))
    assert (empty.errors, exit_code(empty)) == (0, 3)


def test_however_bad_the_log_the_report_is_short_and_counts_everything(write_log: Any) -> None:
    steps = [{"kind": "step", "step": n, "loss": "x", "router": 1} for n in range(1, 101)]
    report = check_format(write_log([header(), *steps]))
    lines = format_text(report).splitlines()
    assert len(lines) == 2 * (SAID_IN_FULL + 1) + 1
    assert lines[-1].endswith("101 lines: 1 run record, 100 steps; 200 errors")
    assert [p.count for p in report.problems if p.count > 1] == [80, 80]


def test_text_and_json_name_line_reason_and_counts(write_log: Any) -> None:
    path = write_log([header(), {"kind": "event"}])
    report = check_format(path)
    first, last = format_text(report).splitlines()
    assert first.startswith(f"{path}:2: error: an event without a name: write ")
    assert last == f"{path}: 2 lines: 1 run record, 1 event; 1 error"
    data = json.loads(json.dumps(format_json(report)))
    assert (data["exit_code"], data["errors"], data["lines"]) == (3, 1, 2)
    assert data["records"] == {"run": 1, "step": 0, "event": 1, "other": 0}
    assert (data["problems"][0]["line"], data["problems"][0]["code"]) == (2, "event")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["NaN", "a\x1b[2J"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["layers", "num_experts", "top_k"]), inner, max_size=3)
        | st.dictionaries(st.sampled_from(SUMMARIES), inner, max_size=3)
    ),
    max_leaves=12,
)
KEYS = sorted({*validate.STEP, *tables.RUN, *tables.EVENT})
FIELDS = st.dictionaries(st.sampled_from(KEYS), JSON, max_size=5)
KINDS = st.fixed_dictionaries({"kind": st.sampled_from(["run", "step", "event"])})
VALUES = st.builds(lambda fields, kind: json.dumps(fields | kind).encode(), FIELDS, KINDS)
TWICE = st.builds(lambda line: b'{"kind": "step", "step": 1, ' + line[1:], VALUES)
BYTES = st.binary(max_size=80) | st.text(max_size=40).map(str.encode)


@settings(max_examples=200)
@given(st.lists(VALUES | TWICE, max_size=6) | st.lists(BYTES, max_size=5))
def test_neither_values_nor_bytes_stop_the_check(lines: list[bytes]) -> None:
    for problem in problems_in(enumerate(lines, 1)):
        assert problem.reason == safe_text(problem.reason, 10**6)
