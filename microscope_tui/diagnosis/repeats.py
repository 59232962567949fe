"""Counts that repeat: a buffer that is not filled again, or one that two layers share; ties.

If v is the variance of a count, the difference of two lines has 2v: they are equal with probability
1 ÷ √(4πv). Where T tokens choose independently, v = n (1 − n ÷ T); real tokens depend on each other
and have more. A quarter is assumed here, since balancing may keep counts together: 1 ÷ √(πv). The
chance of a row is the product over its experts but one, whose count follows from the others. Where
v < 8 an expert is not evidence: one that every sequence uses once always has the same count.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import msgspec

from microscope_tui.diagnosis.episodes import WHOLE_RUN, Facts, Reason

_LINES = 3  # with the same row
_RARE = 3e-5  # of one repetition; of two it is below 1e-9
_LEAST = 8.0  # v of an expert that is evidence: two are equal with a chance below 0.2
_ALWAYS = 20  # lines of a tie: 0.2 to this power, for at most 256² pairs
_STILL = 2e-3  # share of the loss, and half as many nats: the same batch again


class Repeats(msgspec.Struct):
    """What is remembered of earlier lines; part of a saved state."""

    rows: dict[int, int] = {}
    """Router → hash of its last row …"""
    same: dict[int, int] = {}
    """… and for how many lines in a row."""
    loss: float | None = None
    """Of the last line."""
    ties: dict[int, tuple[int, list[list[int]]]] = {}
    """Router → groups of experts that were equal in so many lines; of layers at ``WHOLE_RUN``."""

    def add(
        self, rows: Mapping[int, list[int]], tokens: Mapping[int, float], loss: float | None,
        *, fixed: bool
    ) -> dict[int, Facts]:  # fmt: skip
        """What repeats in the rows of one line: router → facts for METER.

        ``rows``: counts by router; ``tokens``: of each router; ``fixed``: no parameter can change.
        """
        hashes = {index: hash(tuple(row)) for index, row in rows.items()}
        fresh = {index for index, row in hashes.items() if self.rows.get(index) != row}
        self.same = {i: self.same.get(i, 0) + 1 for i in rows} | dict.fromkeys(fresh, 1)
        self.rows |= hashes

        def is_rare(index: int) -> bool:
            return _is_rare(rows[index], tokens[index])

        found = self._repeated(is_rare, self._is_same_loss(loss) or fixed)
        for index in fresh:  # an old row is not further evidence
            row = rows[index]
            key = partial(_busy, row, sum(row), tokens[index])
            for tie in self._tied(index, range(len(row)), key):
                lines, experts = self.ties[index][0], tuple(tie)
                found[index] = {"cause": Reason.TIED, "total": lines, "experts": experts}
        times = Counter(hashes[index] for index in fresh)
        twins = {i: hashes[i] for i in fresh if times[hashes[i]] > 1 and is_rare(i)}
        for tie in self._tied(WHOLE_RUN, rows, twins.get) if fresh else ():
            shared: Facts = {"cause": Reason.SHARED, "total": self.ties[WHOLE_RUN][0]}
            found |= dict.fromkeys(tie, shared)
        return found

    def _is_same_loss(self, loss: float | None) -> bool:
        before = self.loss
        self.loss = loss
        if loss is None or before is None:
            return False
        return abs(loss - before) <= _STILL * (0.5 + abs(loss))

    def _repeated(self, is_rare: Callable[[int], bool], fixed: bool) -> dict[int, Facts]:
        """One batch where all rows are those of the lines before and nothing learns."""
        one_batch = fixed and all(lines >= _LINES for lines in self.same.values())
        cause = Reason.ONE_BATCH if one_batch else Reason.REPEATED
        return {
            index: {"cause": cause, "total": lines}
            for index, lines in self.same.items()
            if lines >= _LINES and is_rare(index)
        }

    def _tied(
        self, place: int, ids: Iterable[int], key: Callable[[int], int | None]
    ) -> list[list[int]]:
        """Keep what is equal in this line, too; returns what always was. No key: no evidence."""
        lines, groups = self.ties.get(place, (0, [list(ids)]))
        kept = list[list[int]]()
        for group in groups:
            parts: dict[int | None, list[int]] = {}
            for one in group:
                parts.setdefault(key(one), []).append(one)
            kept += [part for k, part in parts.items() if k is not None and len(part) > 1]
        self.ties[place] = lines + 1, kept
        return kept if lines + 1 >= _ALWAYS else []


def _variance(count: int, tokens: float) -> float:
    return count * (1 - count / tokens)


def _busy(row: Sequence[int], total: int, tokens: float, expert: int) -> int | None:
    count = row[expert]
    busy = 2 * count * len(row) > total and _variance(count, tokens) > _LEAST
    return count if busy else None


def _is_rare(row: Sequence[int], tokens: float) -> bool:
    """Whether the next line hardly ever has the same row."""
    known = sorted(v for n in row if (v := _variance(n, tokens)) > _LEAST)[:-1]
    return math.exp(-0.5 * sum(math.log(math.pi * v) for v in known)) < _RARE
