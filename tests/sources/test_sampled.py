"""A sample of a long text or database: whole steps of the whole history, or none at all."""

import random
from itertools import pairwise
from pathlib import Path

import pytest

from microscope_tui.sources import FORMATS, SourceRequest
from tests.sources import sound
from tests.sources.reading import drained, settle
from tests.sources.sqlite_writer import made

CHANCE = random.Random(0)
RUN = [[CHANCE.sample(range(20), 4), CHANCE.sample(range(20), 4)] for _ in range(4000)]
ROWS = [{"step": step, **row} for step, _, row in sound.rows(RUN)]
SOUND = {one.form: one for one in sound.SOUND}
LONG = [f"{row['step']},{name},{x}\n".encode() for row in ROWS for name, x in row.items()]
SORTED = (b"%d,router/entropy/%d,1\n" % (n % 999, n // 999) for n in range(103_000))
TWICE = [*range(2000), *range(1900)]  # with other numbers from step 500 on
SOME = [row if at % 9 == 0 else {"step": row["step"], "loss": 1} for at, row in enumerate(ROWS)]
LATER = "INSERT INTO metrics (run_id, timestamp, run_name, step, metrics) "
LATER += "SELECT 'r9', timestamp, 'later', step, metrics FROM metrics"
CONTENT = {form: SOUND[form].content(RUN) for form in ("jsonl", "csv", "trackio", "mlflow")} | {
    "csv long": b"step,key,value\n" + b"".join(LONG),
    "jsonl damaged": SOUND["jsonl"].content(RUN) + bytes(range(256)) * 99,
    "jsonl routers now and then": sound.lines(SOME),
    "jsonl restarted": sound.lines(
        [ROWS[n if n < 500 else at] | {"step": n} for at, n in enumerate(TWICE)]
    ),
    "trackio later run": SOUND["trackio"].content(RUN[:2000]),
}
NONE = {
    "short": SOUND["csv"].content(RUN[:20]),
    "foreign encoding": SOUND["csv"].content(RUN).decode().encode("utf-16"),
    "sorted by name": b"step,key,value\n" + b"".join(SORTED),
    "damaged": SOUND["csv"].content(RUN[:1]) + bytes(range(256)) * 1000,
}


@pytest.mark.parametrize("case", CONTENT)
def test_a_sample_is_whole_steps_of_the_whole_history_and_costs_a_part_of_it(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = case.split()[0]
    path, kind = tmp_path / SOUND[form].file, FORMATS[form].reader
    path.write_bytes(CONTENT[case])
    if "later" in case:
        made(path, LATER)
    calls, row, run = list[int](), kind._row, kind.runs(path)[-1]
    monkeypatch.setattr(kind, "_row", lambda *line: calls.append(1) or row(*line))
    watched, other = (
        FORMATS[form].open(settle(path), run, "x", SourceRequest(num_experts=4, top_k=2))
        for _ in range(2)
    )
    header, *steps = watched.sample(20)
    cost, whole = len(calls), drained(other)
    known = {record["step"]: record for record in whole if record["kind"] == "step"}
    assert cost < (len(calls) - cost) / 2
    assert header == whole[0]
    assert steps == [known[record["step"]] for record in steps]
    assert all("tokens_per_expert" in record for record in steps)
    gaps = [b - a for a, b in pairwise([0, *(r["step"] for r in steps), max(known)])]
    assert 0 <= min(gaps) <= max(gaps) < max(known) / 9
    assert drained(watched) == whole  # the sample changes nothing
    assert watched.defects == other.defects


@pytest.mark.parametrize("case", NONE)
def test_where_no_sample_makes_sense_there_is_none(tmp_path: Path, case: str) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes(NONE[case])
    assert not FORMATS["csv"].open(path, "", "x", SourceRequest()).sample(20)
