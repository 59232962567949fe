"""Samples of one router's experts, held against a reading of the whole log."""

import gzip
import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from microscope_tui.watch import RunWatch, Window, samples
from tests.conftest import header, open_log, step

EXPERTS, TOKENS = 8, 32


def counts(rng: random.Random) -> list[int]:
    row = [rng.randrange(1, 16) for _ in range(EXPERTS)]
    row[0] += 2 * TOKENS - sum(row) if sum(row) < 2 * TOKENS else 0
    return row


def surviving(records: list[dict[str, Any]], router: int) -> dict[int, tuple[Any, Any]]:
    """Step → counts and bias of every step that holds, from all records in order: the oracle."""
    kept: dict[int, tuple[Any, Any]] = {}
    for record in records:
        resumed = record.get("resumed_at_step") if record["kind"] == "run" else record.get("step")
        if resumed is not None:
            kept = {step: value for step, value in kept.items() if step < resumed}
        if record["kind"] == "step":
            rows, biases = record.get("tokens_per_expert"), record.get("expert_bias")
            kept[record["step"]] = (
                rows[router] if rows else None,
                biases[router] if biases else None,
            )
    return kept


@pytest.fixture
def make_records() -> Callable[..., list[dict[str, Any]]]:
    def make(lives: list[tuple[int, int]], every: int = 1, seed: int = 0) -> list[dict[str, Any]]:
        """A log of several lives, each from one step to another; counts in every so many steps."""
        rng, records = random.Random(seed), []
        for at, (first, last) in enumerate(lives):
            records.append(header(resumed_at_step=first if at else None))
            for number in range(first, last + 1):
                rows = [counts(rng) for _ in range(3)]
                record = step(number, rows, TOKENS)
                record["expert_bias"] = [[rng.random() for _ in range(EXPERTS)] for _ in rows]
                if number % every and number > 1:
                    del record["tokens_per_expert"], record["expert_bias"]
                records.append(record)
        return records

    return make


@pytest.mark.parametrize("stride", [1, 2, 8])
@pytest.mark.parametrize("seed", range(12))
def test_samples_are_what_a_reading_of_the_whole_log_gives_whatever_the_restarts(
    make_records: Any, write_log: Any, seed: int, stride: int
) -> None:
    rng = random.Random(seed)
    lives, last = [(1, rng.randrange(5, 60))], 0
    for _ in range(rng.randrange(4)):
        last = lives[-1][1]
        first = rng.randrange(1, last + 1)
        lives.append((first, first + rng.randrange(1, 40)))
    records = make_records(lives, every=rng.choice([1, 1, 3, 5]), seed=seed)
    path = write_log(records)
    watch = open_log(path)
    halve(watch, stride)
    known = surviving(records, 1)
    window = Window(first := rng.randrange(1, max(known) + 1), rng.randrange(first, max(known) + 1))
    for where in (None, window):
        for count in (rng.randrange(1, 40), 500):
            found = samples(watch, 1, count, where)
            assert len(found) <= count
            assert [sample.step for sample in found] == sorted({sample.step for sample in found})
            for sample in found:
                assert (sample.counts, sample.bias) == known[sample.step]
                assert where is None or where.first <= sample.step <= where.last
        within = [s for s in sorted(known) if where is None or where.first <= s <= where.last]
        if stride == 1:
            assert [s.step for s in found] == [step for step in within if known[step][0]]


def halve(watch: RunWatch, stride: int) -> None:
    while watch.history.stride < stride and len(watch.history) > 1:
        watch.scan.history = watch.history.halved()


def test_work_is_bounded_by_the_number_of_samples_not_by_the_log(
    make_records: Any, write_log: Any, reads: list[int]
) -> None:
    watch = open_log(write_log(make_records([(1, 400)])))
    reads.clear()
    assert len(samples(watch, 0, 20)) == 20
    assert len(reads) == 20
    assert sum(reads) <= 20 * (1 << 14)


def test_a_log_without_counts_gives_no_samples(write_log: Any) -> None:
    steps = [step(n, [[4] * 8] * 3, 16) for n in range(1, 30)]
    for one in steps:
        del one["tokens_per_expert"]
    assert samples(open_log(write_log([header(), *steps])), 0, 10) == []


def test_a_bias_of_another_length_is_no_bias(write_log: Any) -> None:
    steps = [
        step(n, [[4] * 8] * 3, 16, expert_bias=[[0.1] * (8 if n > 5 else 7)] * 3)
        for n in range(1, 11)
    ]
    found = samples(open_log(write_log([header(), *steps])), 0, 10)
    assert [sample.bias is None for sample in found] == [True] * 5 + [False] * 5


def test_a_packed_log_a_missing_router_and_a_cancelled_reading_give_nothing(
    make_records: Any, write_log: Any
) -> None:
    path = write_log(make_records([(1, 20)]))
    watch = open_log(path)
    assert samples(watch, 99, 10) == []
    assert samples(watch, 0, 10, cancelled=lambda: True) == []
    packed = path.with_name("metrics.jsonl.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    watch = open_log(packed)
    assert samples(watch, 0, 10) == []


def test_a_log_replaced_meanwhile_gives_no_wrong_samples(make_records: Any, write_log: Any) -> None:
    path = write_log(make_records([(1, 40)]))
    watch = open_log(path)
    shifted = make_records([(1, 40)])
    shifted[0]["run"] = "t"  # three bytes less: every offset points into a line
    for other in (make_records([(101, 140)], seed=1), shifted):
        path.write_bytes(b"".join(json.dumps(record).encode() + b"\n" for record in other))
        assert samples(watch, 0, 10) == []


def test_a_log_that_is_gone_says_so(make_records: Any, write_log: Any) -> None:
    path = write_log(make_records([(1, 40)]))
    watch = open_log(path)
    path.unlink()
    with pytest.raises(OSError, match="No such file"):
        samples(watch, 0, 10)
