"""What LINT sees in the steps, besides the sign of a bias update (see ``bias_sign``).

A bias that a restart has lost, one that does not move, one that moves while the routers are frozen,
and layers that an auxiliary loss pools. The first three are part of a saved state.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean

import msgspec

from microscope_tui.diagnosis.episodes import Facts, Reason
from microscope_tui.diagnosis.signals import Signal, StepView, Trail
from microscope_tui.runlog import RouterInfo

LOOKS = 100
"""Lines from one look at the bias to the next, which decodes a whole line."""
_EARLY = 40  # lines in which a bias is compared that may not move, or that of frozen routers
_LOST, _BACK = 0.1, 0.5  # of its span before


class LostBias(msgspec.Struct):
    """A bias that is zero after a restart: the checkpoint did not hold it."""

    spans: Trail = msgspec.field(default_factory=lambda: Trail(size=40))
    """Largest minus smallest bias, the mean of all routers."""
    resumed: int | None = None
    """Step of a restart after which no bias was seen yet."""
    lost: int | None = None
    """Step of the restart at which it was lost."""
    first: int | None = None
    """The first of these steps."""

    def restart(self, step: int) -> None:
        """The run resumes at ``step``: the next bias shows whether the restart kept it."""
        self.spans.forget_from(step)
        self.resumed = None
        if self.spans.rows:
            self.resumed = step
        if self.lost is not None and self.lost >= step:
            self.lost = None

    def is_due(self, step: int) -> bool:
        """Whether the bias is awaited after a restart."""
        return self.resumed is not None and step < self.resumed + LOOKS

    def see(self, step: int, rows: Mapping[int, list[float]]) -> Facts:
        """Compare with the bias before; the facts of a loss that this line shows."""
        span = sum(max(row) - min(row) for row in rows.values()) / len(rows)
        usual = 0.0
        if self.spans.rows:
            usual = self.spans.rows[-1][0]
        resumed = self.resumed
        self.resumed = None
        if self.lost is not None:
            once = self.lost == self.first
            if span >= _BACK * usual and (once or resumed is not None):  # a restart has kept it
                self.lost = None
        elif resumed is not None and span <= _LOST * usual > 0:
            self.lost = resumed
            self.first = self.first or resumed
            ago = resumed - self.first
            return {"cause": Reason.BIAS_LOST, "at": resumed, "before": usual, "ago": ago}
        else:
            self.spans.add(step, [span])
        return {}


class Bias(msgspec.Struct):
    """Of one router, the same from one line to another."""

    mark: int
    """Hash of the row."""
    since: int
    """Step of the first look that shows it …"""
    until: int
    """… and the last."""
    moved: bool
    """Whether it differs between experts."""
    same: int = 0
    """Lines in a row that show it; −1 if one does not."""
    uneven: int = 0
    """Lines in a row with an uneven load."""

    def compare(self, step: int, row: Sequence[float]) -> None:
        """With the bias in the next line."""
        self.until = step
        self.same += 1
        if hash(tuple(row)) != self.mark:
            self.same = -1


class StandingBias(msgspec.Struct):
    """A bias that no update moves: the same from look to look, and in the lines after them."""

    latest: dict[int, Bias] = {}
    """Router → its bias at the latest looks."""

    def look(self, step: int, rows: Mapping[int, list[float]]) -> None:
        """Compare the bias of every router with that of the look before."""
        for index, row in rows.items():
            last, mark = self.latest.get(index), hash(tuple(row))
            if last is not None and last.mark == mark:
                last.until = step
            else:
                self.latest[index] = Bias(mark, step, step, max(row) > min(row))

    def see(self, view: StepView, index: Signal | None, uneven: float) -> dict[int, Bias]:
        """Those that are the same in this line, too: one that moves to and fro can be the same at
        two looks. ``uneven``: c below which the load is uneven.
        """
        for router, bias in self._standing().items():
            bias.uneven += 1
            if index is None or not index.values[router] < uneven:
                bias.uneven = 0
            if 0 <= bias.same < _EARLY and (row := view.biases(router)):
                bias.compare(view.step, row)
        return {r: bias for r, bias in self._standing().items() if bias.same >= _EARLY}

    def _standing(self) -> dict[int, Bias]:
        """Did not move from look to look, or from the start."""
        return {r: b for r, b in self.latest.items() if b.until > b.since or not b.moved}


class FrozenBias(msgspec.Struct):
    """The bias of frozen routers, which changes the choice of experts if it moves."""

    first: dict[int, list[float]] = {}
    """Router → its first bias since a start."""
    lines: int = 0
    """Lines with counts since then."""
    moves: bool = False
    """Whether one has changed."""

    def restart(self) -> None:
        """What moves is compared with the bias of the next lines."""
        self.first = {}
        self.lines = 0

    def see(self, view: StepView) -> None:
        """Compare with the first bias; the first lines since a start decide."""
        if not view.has_counts:
            return
        self.lines += 1
        if self.lines <= _EARLY or self.lines % LOOKS == 0:
            rows = view.all_biases().items()
            moved = [self.first.setdefault(index, row) != row for index, row in rows]
            self.moves = any(moved) or (self.moves and self.lines < _EARLY)


def cancel_out(view: StepView, routers: Sequence[RouterInfo], most: float) -> bool:
    """Whether the sum of all layers is far more even than independent layers make it.

    ``most``: of what they would leave.
    """
    rows = [view.full_counts(index) or [] for index in range(len(routers))]
    if not all(map(any, rows)) or len(set(map(len, rows))) > 1:
        return False
    total = [sum(column) for column in zip(*rows, strict=True)]
    squares = [len(row) * sum(n * n for n in row) / sum(row) ** 2 for row in (total, *rows)]
    by_chance = (fmean(squares[1:]) - 1.0) / len(rows)
    return len(total) >= 8 and squares[0] - 1.0 < most * by_chance
