"""The contract of reading: whole lines only, any split of the bytes, no line kills the reader."""

import itertools
import json
import math
import re
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from microscope_tui.runlog import LineSplitter, RunReader, StepEntry, decode_line, safe_text
from microscope_tui.runlog.decode import decode_matrices
from microscope_tui.runlog.records import BadLine, EventRecord, RunRecord, StepRecord, UnknownFormat
from tests.hostile.poison import TEXTS

HEADER: dict[str, Any] = {"kind": "run", "format_version": 1, "run": "r"}
HEADER |= {"model": {"layers": [1, 2], "num_experts": 4, "top_k": 1}}
STEP: dict[str, Any] = {"kind": "step", "step": 1, "loss": 2.5, "tokens": 8}
STEP |= {"router": {"entropy": [1.0, None]}, "tokens_per_expert": [[2, 2, 2, 2], [8, 0, 0, 0]]}


def lines(*records: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def described(reader: RunReader, chunks: list[bytes]) -> list[str]:
    entries = [entry for chunk in chunks for entry in reader.feed(chunk)]
    return [
        str(e.record) + str(e.matrices()) if isinstance(e, StepEntry) else str(e) for e in entries
    ]


LOG = (
    lines(HEADER, *({**STEP, "step": n} for n in range(1, 8)), {"kind": "event", "event": "end"})
    + b"broken\n\n"
    + lines({**STEP, "step": 8, "loss": "NaN"})
)


@settings(max_examples=200)
@given(st.lists(st.integers(0, len(LOG)), max_size=12))
def test_any_split_of_the_bytes_gives_the_same_records(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(LOG)]
    chunks = [LOG[a:b] for a, b in itertools.pairwise(edges)]
    whole, parts = RunReader("r"), RunReader("r")
    assert described(parts, chunks) == described(whole, [LOG])
    assert parts.defects == whole.defects
    assert whole.defects.count == 1


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=8))
def test_lines_come_out_whole_whatever_the_bytes(data: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    splitter = LineSplitter()
    got = [line for a, b in itertools.pairwise(edges) for _, line in splitter.feed(data[a:b])]
    expected = [line.lstrip(b"\0") for line in data.split(b"\n")[:-1]]  # a hole is no text
    expected[:1] = [line.removeprefix(b"\xef\xbb\xbf") for line in expected[:1]]
    assert got == expected


@given(st.binary(max_size=200) | st.text(max_size=80).map(lambda t: t.encode("utf-8", "replace")))
def test_no_line_kills_the_decoder(line: bytes) -> None:
    try:
        record = decode_line(line)
    except (BadLine, UnknownFormat):
        return  # refused in words
    assert record is None or isinstance(record, StepRecord | RunRecord | EventRecord)


FIELDS = ["step", "time", "loss", "losses", "tokens", "router", "model", "balance", "source"]
FIELDS += ["tokens_per_expert", "expert_bias", "planned_steps", "event", "values", "reason"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=300)
@given(
    st.sampled_from(["step", "run", "event"]),
    st.dictionaries(st.sampled_from(FIELDS), JSON),
    st.dictionaries(st.sampled_from(["layers", "layer_names", "num_experts", "top_k"]), JSON),
)
def test_wrong_types_cost_the_key_or_the_line_never_the_reader(
    kind: str, fields: dict[str, Any], model: dict[str, Any]
) -> None:
    record = {"kind": kind, "format_version": 1, "model": model} | fields
    reader = RunReader("r")
    steps = []
    try:
        for entry in reader.feed(lines(HEADER) + lines(record) + lines({**STEP, "step": 7})):
            if isinstance(entry, StepEntry):
                entry.matrices()
                steps.append(entry.record.step)
    except UnknownFormat:
        return  # the one thing that may end a log, in words
    assert steps[-1] == 7


@given(JSON, st.dictionaries(st.text(max_size=6), JSON | st.sampled_from(TEXTS)) | JSON)
def test_names_of_a_framework_are_words_that_a_terminal_can_show(update: Any, names: Any) -> None:
    balance = {"method": "aux", "update": update, "names": names, "force_collapse": update}
    record = decode_line(lines({**HEADER, "balance": balance}))
    assert record.balance.get("update") in (None, "sign", "proportional", "quantile")
    assert re.fullmatch(r"\d+@\d+", record.balance.get("force_collapse", "3@100"))
    for name in record.balance.get("names", {"": "-"}).values():
        assert name == safe_text(name, 40) == "".join(name.split()) != ""


def test_at_most_forty_names_of_a_framework_are_read() -> None:
    names = {"z_loss_weight": 1, **{f"setting {n}": "--moe-z-loss-coeff" for n in range(1000)}}
    record = decode_line(lines({**HEADER, "balance": {"update": "sign", "names": names}}))
    assert record.balance["update"] == "sign"
    assert [*record.balance["names"].values()] == ["--moe-z-loss-coeff"] * 39


def test_fractions_in_the_counts_are_named_with_what_to_write() -> None:
    reader, wrong = RunReader("r"), {**STEP, "tokens_per_expert": [[3, 1], [0.0, 0.25]]}
    del wrong["router"]
    assert len(list(reader.feed(lines(HEADER) + lines(wrong)))) == 2
    (said,) = reader.defects.first
    assert "tokens_per_expert[1] holds fractions: write shares × 1,000,000 and source.cou" in said


@pytest.mark.parametrize(
    ("value", "shown"), [("NaN", math.nan), ("Infinity", math.inf), ("-Infinity", -math.inf)]
)
def test_non_finite_numbers_are_read_as_names_and_as_bare_tokens(value: str, shown: float) -> None:
    for text in (f'"{value}"', value):
        record = decode_line(b'{"kind":"step","step":3,"loss":' + text.encode() + b"}")
        assert record.loss == shown or (record.loss != record.loss and shown != shown)


def test_a_bad_key_does_not_lose_the_record() -> None:
    record = decode_line(b'{"kind":"step","step":3,"loss":2.5,"tokens":"many","grad_norm":[1]}')
    assert (record.step, record.loss, record.tokens, record.grad_norm) == (3, 2.5, None, None)


@pytest.mark.parametrize("step", ["1e400", "-1", "1.5", '"7"', "null", "1" + "0" * 400])
def test_a_step_that_is_no_step_number_is_a_bad_line(step: str) -> None:
    with pytest.raises(BadLine, match="not a step number"):
        decode_line(b'{"kind":"step","step":' + step.encode() + b"}")


def test_another_format_version_is_refused_with_what_to_do() -> None:
    with pytest.raises(UnknownFormat, match="format_version is 2, this microscope reads 1: update"):
        list(RunReader("r").feed(lines({**HEADER, "format_version": 2})))


def test_unknown_kinds_and_keys_are_ignored() -> None:
    assert decode_line(b'{"kind":"weather","rain":true}') is None
    record = decode_line(b'{"kind":"step","step":1,"colour":"blue"}')
    assert isinstance(record, StepRecord)


def test_rows_that_are_no_counts_become_no_value() -> None:
    line = lines({**STEP, "tokens_per_expert": [[1, -2, 3, 4], [1, 2, 3, 4.0]]})
    assert decode_matrices(line, 2).tokens_per_expert == [None, [1, 2, 3, 4]]
    assert decode_matrices(line, 3).tokens_per_expert == [None, None, None]


def test_a_summary_of_the_wrong_length_is_dropped_and_counted() -> None:
    reader = RunReader("r")
    bad = {**STEP, "router": {"entropy": [1.0], "max_load": [1.0, 2.0]}}
    *_, entry = reader.feed(lines(HEADER, bad))
    assert entry.record.router.entropy is None
    assert entry.record.router.max_load == [1.0, 2.0]
    assert reader.defects.first == ["line 2: router.entropy has 1 values for 2 routers"]


def test_a_log_without_a_header_is_read_from_its_counts() -> None:
    reader = RunReader("orphan")
    run, entry = reader.feed(lines(STEP))
    assert isinstance(run, RunRecord)
    assert run.inferred
    assert [(r.num_experts, r.top_k) for r in run.routers] == [(4, 1), (4, 1)]
    assert isinstance(entry, StepEntry)


@pytest.mark.parametrize("top_k", [None, 0, -1, "2", [None, None]])
def test_a_header_that_does_not_say_top_k_leaves_it_unknown(top_k: Any) -> None:
    record = {**HEADER, "model": {**HEADER["model"], "top_k": top_k}}
    run, _ = RunReader("r").feed(lines(record, STEP))
    assert isinstance(run, RunRecord)
    assert [r.top_k for r in run.routers] == [0, 0]


def test_counts_without_tokens_do_not_show_top_k() -> None:
    run, _ = RunReader("orphan").feed(lines({k: v for k, v in STEP.items() if k != "tokens"}))
    assert isinstance(run, RunRecord)
    assert [(r.num_experts, r.top_k) for r in run.routers] == [(4, 0), (4, 0)]
