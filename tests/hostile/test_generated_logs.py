"""No log can hurt the reader: 1,000 of them, from nearly right to noise, through all it does.

One that fails is seen again by its number: ``python -m benchmarks.fuzz --first SEED --cases 1``.
"""

import gc
import resource
from pathlib import Path

import pytest

from tests.hostile.journey import travel
from tests.hostile.logs import hostile_log
from tests.hostile.outcome import hurts

SHARDS, CASES = 10, 100
WHOLE_EVERY = 40
"""So many cases go through the reader, the view and a snapshot; one of them through everything."""
MOST_GROWTH = 256 << 20


@pytest.mark.parametrize("shard", range(SHARDS))
def test_no_log_hurts_the_reader(shard: int, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in range(shard * CASES, (shard + 1) * CASES):
        try:
            travel(seed, tmp_path, whole=seed % WHOLE_EVERY == 0)
        except BaseException as error:
            error.add_note(f"hostile log {seed}")
            raise
    gc.collect()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown < MOST_GROWTH


def test_the_same_number_is_the_same_log() -> None:
    assert [hostile_log(seed) for seed in range(50)] == [hostile_log(seed) for seed in range(50)]


def test_many_of_the_logs_contain_what_hurts_readers() -> None:
    logs = [hostile_log(seed) for seed in range(1500)]
    for wanted in (
        *(b"\0" * 50, b":NaN", b"Infinity", b"[" * 10_000, b"1" + b"0" * 400, b"\xff\xfe"),
        *(b"\x1b[2J", b"]52;c;", "\u202e".encode(), b"[bold red]", b"../../"),
        *(b'"format_version":1', b'"tokens_per_expert":[[', b'"resumed_at_step":'),
    ):
        assert sum(wanted in log for log in logs) >= 5, wanted[:50]


@pytest.mark.parametrize("text", ["\x1b[2J", "\x9b2J", "a\rb", "\u202e", "\u200b", "\ud800", "\0"])
def test_the_check_of_texts_finds_what_hurts(text: str) -> None:
    assert hurts(f"fine\n{text}")
    assert not hurts("fine ● ▁▂ 日本語 é ⣿ … �\n")
