"""Counts that repeat: a buffer that is not filled again, or one that two layers share; ties.

If v is the variance of a count, the difference of two lines has 2v: they are equal with probability
1 ÷ √(4πv). Where T tokens choose independently, v = n (1 − n ÷ T); real tokens depend on each other
and have more. A quarter is assumed here, since balancing may keep counts together: 1 ÷ √(πv). The
chance of a row is the product over its experts but one, whose count follows from the others. Where
v < 8 an expert is not evidence: one that every sequence uses once always has the same count.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial

import msgspec

from microscope_tui.diagnosis.episodes import WHOLE_RUN, Facts

_LINES = 3  # with the same row
_RARE = 3e-5  # of one repetition; of two it is below 1e-9
_LEAST, _LIKELY = 8.0, 0.2  # v, and 1 ÷ √(πv)
_ALWAYS = 20  # lines of a tie: 0.2 to this power, for at most 256² pairs
_STILL = 2e-3  # share of the loss, and half as many nats: the same batch again


class Tie(msgspec.Struct):
    """Experts of a router, or layers, with equal counts in every line so far."""

    ids: list[int]
    lines: int = 0
    """Those in which that is evidence."""


class Repeats(msgspec.Struct):
    """What was equal in the checked lines."""

    rows: dict[int, tuple[int, int]] = {}
    """Router → hash of its row, and for how many lines in a row."""
    losses: list[float | None] = []
    ties: dict[int, list[Tie]] = {}
    """Router → ties of its experts; those of the layers at ``WHOLE_RUN``."""

    def begin(self) -> None:
        """The next line does not follow the last one."""
        self.rows, self.losses = {index: (row, 0) for index, (row, _) in self.rows.items()}, []

    def add(
        self, rows: Mapping[int, list[int]], tokens: Mapping[int, float], loss: float | None,
        *, fixed: bool,
    ) -> dict[int, Facts]:  # fmt: skip
        """Add the rows of one line; returns what repeats. ``fixed``: no parameter can change."""
        found: dict[int, Facts] = {}
        hashes = {index: hash(tuple(row)) for index, row in rows.items()}
        fresh = {i for i, known in hashes.items() if self.rows.get(i, (0, 0))[0] != known}
        for index, row in rows.items():
            lines = 1 if index in fresh else self.rows[index][1] + 1
            self.rows[index] = hashes[index], lines
            if lines >= _LINES and _chance(row, tokens[index]) < _RARE:
                found[index] = {"cause": "repeated", "total": lines}
        self.losses.append(loss)
        if (fixed or _is_still(self.losses)) and all(self.rows[i][1] >= _LINES for i in rows):
            return {index: {**facts, "cause": "one batch"} for index, facts in found.items()}
        for index in fresh:  # an old row is not further evidence
            row = rows[index]
            busy = partial(_is_busy, row, tokens[index])
            for tie in self._tie(index, range(len(row)), row.__getitem__, busy):
                found[index] = {"cause": "tied", "total": tie.lines, "experts": (*tie.ids,)}
        for tie in self._tie(
            WHOLE_RUN,
            list(rows),
            lambda i: hashes.get(i, (i,)),
            lambda i: i in fresh and _chance(rows[i], tokens[i]) < _LIKELY,
        ):
            found |= {index: {"cause": "shared", "total": tie.lines} for index in tie.ids}
        return found

    def _tie(
        self,
        place: int,
        ids: Sequence[int],
        key: Callable[[int], Hashable],
        is_evidence: Callable[[int], bool],
    ) -> list[Tie]:
        """Keep what is still equal after one more line; returns what always was."""
        kept = []
        for tie in self.ties.get(place, [Tie(list(ids))]):
            parts: dict[Hashable, list[int]] = {}
            for one in tie.ids:
                parts.setdefault(key(one), []).append(one)
            same = [part for part in parts.values() if len(part) > 1]
            kept += [Tie(part, tie.lines + is_evidence(part[0])) for part in same]
        self.ties[place] = kept
        return [tie for tie in kept if tie.lines >= _ALWAYS]


def _variance(count: int, tokens: float) -> float:
    return count * (1 - count / tokens)


def _is_busy(row: Sequence[int], tokens: float, expert: int) -> bool:
    busy = 2 * row[expert] * len(row) > sum(row)
    return busy and _variance(row[expert], tokens) > _LEAST


def _chance(row: Sequence[int], tokens: float) -> float:
    """Probability that the next line has the same row."""
    known = sorted(v for n in row if (v := _variance(n, tokens)) > _LEAST)[:-1]
    return math.exp(-0.5 * sum(math.log(math.pi * v) for v in known))


def _is_still(losses: Sequence[float | None]) -> bool:
    known = [loss for loss in losses if loss is not None]
    reach = _STILL * (0.5 + abs(known[-1])) if known else 0.0
    return len(known) == len(losses) and max(known) - min(known) <= reach
