"""A metrics endpoint in the text format of Prometheus, polled while it runs.

A step is a poll, from 1. Counters give their increments between two polls; one that went down was
reset, and the run restarts. What a key is: see ``exposition``. Series that a mapping does not tell
apart are added up if they are ``tokens_per_expert``.

SGLang's ``sglang:eplb_gpu_physical_count`` is read without a mapping. It counts the tokens of each
GPU rank, not of experts, so no expert is shown: only ``max_load`` over ranks per layer, which the
``max_load`` over experts is never below, and the layers are called ``L3 ranks``.
"""

import time
from collections import defaultdict
from collections.abc import Mapping
from typing import TypeVar

from microscope_tui.sources.exposition import Sample, Types, samples
from microscope_tui.sources.http_poll import Poll, is_address, shown
from microscope_tui.sources.keys import MAX_LAYERS, Keys, Target
from microscope_tui.sources.named_numbers import parse_number
from microscope_tui.sources.reader import Row, RowReader, Rows, Unreadable

__all__ = ["EVERY_S", "PrometheusReader", "is_address", "shown"]

EVERY_S = 15.0
"""Seconds between two polls, as Prometheus itself scrapes by default in its examples."""
SGLANG = "sglang:eplb_gpu_physical_count_bucket"
_MOST_RANKS = 4096
Key = TypeVar("Key", str, float)
_Ranks = dict[int, dict[float, float]]  # by layer and rank


class PrometheusReader(RowReader):
    """Polls an address; ``exhausted`` only after two polls, so that counters have a step."""

    def __init__(self, address: str, keys: Keys, every: float = EVERY_S) -> None:
        super().__init__(keys)
        self.name = shown(address)
        self.every = every
        """Seconds between two polls."""
        self.polls = 0
        """Polls that were answered since the start or the last reset."""
        self._address = address
        self._due = time.monotonic()
        self._poll: Poll | None = None
        self._counters: dict[str, float] = {}
        self._ranks: _Ranks = {}

    def wait_s(self) -> float:
        """Seconds until another ``read`` can give anything; small while a poll is under way."""
        return 0.05 if self._poll is not None else max(0.0, self._due - time.monotonic())

    def read(self, max_bytes: int = 1 << 20) -> Rows:
        """See ``RowReader``; starts a poll when one is due, and never waits for it."""
        if self._poll is None and time.monotonic() >= self._due:
            self._poll = Poll(self._address)
            self._due = time.monotonic() + self.every
        self.exhausted = self.polls >= 2 and self._poll is None
        if self._poll is None or not self._poll.is_done:
            return Rows()
        poll, self._poll = self._poll, None
        body = poll.answer()
        self.offset += len(body)
        self.size, self.modified = self.offset, time.time()
        try:
            return self._row(body.decode("utf-8", "replace"))
        except Unreadable as error:
            raise Unreadable(f"{self.name}: {error}") from error
        finally:
            self.exhausted = self.polls >= 2

    def _row(self, text: str) -> Rows:
        types = Types()
        counters: dict[str, float] = {}
        ranks: _Ranks = defaultdict(dict)
        found: list[tuple[Target, str, float]] = []
        for sample in samples(text, types):
            if sample.name == SGLANG:
                _add_rank(ranks, sample)
            key = sample.key
            target = self.keys[key]
            if target is None:
                continue
            if types.is_cumulative(sample.name):
                counters[key] = sample.value
            found.append((target, key, sample.value))
        ranks = {layer: _by_rank(buckets) for layer, buckets in ranks.items()}
        reset = _went_down(self._counters, counters) or any(
            _went_down(before, ranks.get(layer, {})) for layer, before in self._ranks.items()
        )
        if reset:
            self.polls, self._counters, self._ranks = 0, {}, {}
        self.polls += 1
        row = Row(self.polls, self.modified)
        row.values = self._increments(found, counters)
        if not self.keys.has_routers:
            row.values += self._of_ranks(ranks)
        self._counters, self._ranks = counters, ranks
        return Rows([row] if row.values else [], restarted=reset)

    def _increments(
        self, found: list[tuple[Target, str, float]], counters: Mapping[str, float]
    ) -> list[tuple[Target, float]]:
        sums: dict[Target, float] = {}
        for target, key, value in found:
            if key in counters:
                if self.polls == 1:
                    continue  # what was counted before we came belongs to no step
                value -= self._counters.get(key, 0.0)  # a series appears with its first count
            added = sums.get(target, 0.0) if target.quantity == "tokens_per_expert" else 0.0
            sums[target] = added + value
        return list(sums.items())

    def _of_ranks(self, ranks: _Ranks) -> list[tuple[Target, float]]:
        found = []
        for layer, now in sorted(ranks.items()):
            before = self._ranks.get(layer)
            loads = [now[rank] - before.get(rank, 0.0) for rank in now] if before else []
            if sum(loads) > 0:
                self.layer_name = "L{} ranks"
                found.append((Target("max_load", layer), max(loads) * len(loads) / sum(loads)))
        return found


def _add_rank(ranks: _Ranks, sample: Sample) -> None:
    layer, rank = sample.labels.get("layer", ""), parse_number(sample.labels.get("le", ""))
    if not layer.isdecimal() or len(layer) > 5 or int(layer) >= MAX_LAYERS:
        return
    if rank is not None and 0 <= rank < _MOST_RANKS and sample.value == sample.value:
        buckets = ranks[int(layer)]
        buckets[rank] = buckets.get(rank, 0.0) + sample.value


def _by_rank(buckets: dict[float, float]) -> dict[float, float]:
    """Count of each rank: buckets are cumulative, so neighbours are subtracted."""
    below, counts = 0.0, {}
    for rank in sorted(buckets):
        counts[rank], below = buckets[rank] - below, buckets[rank]
    return counts


def _went_down(before: Mapping[Key, float], now: Mapping[Key, float]) -> bool:
    return any(now.get(key, 0.0) < value for key, value in before.items())
