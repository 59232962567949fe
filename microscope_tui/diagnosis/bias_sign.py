"""The sign of a bias update: a busy expert must lose bias, an idle one gain it.

Where the load of a router is uneven, the change of every expert's bias from line to line is
compared with its load: a trial. Writers log the bias that a step was routed with or the one after
its update, so the change must agree with the load at both of its ends; where the load swings, it
disagrees with one of them. A bias that moves back and forth is not evidence: counts that are logged
only sometimes can show a swing in reverse. Each router has one trial per start of a run, a second
one where it is found wrong and most others are not, and others if it collapses undecided.
"""

from collections.abc import Sequence
from operator import truediv

import msgspec

from microscope_tui.diagnosis.signals import Signal, StepView

_MOST = 8  # routers on trial at the same time, until one is found wrong
_BLIND = 64  # lines with counts and without a bias, after which none is expected
_FIRST = 16  # changes whose load is compared with the latest
_GROWN = 1.2  # a wrong sign makes the load less even: its variance grows by this factor
_WEAK = 0.5  # agreement with the load at the other end of the change, which is noisier
_DIRECTED = 0.6  # share of the path of the bias that leads away from its start
_FEW = 32  # changes that are enough where the router is critically collapsed
_RIGHT_AFTER = 40  # changes that show that the sign is right
_RIGHT, _UNDECIDED, _WRONG = -1, 0, 1


class Trial(msgspec.Struct):
    """One router whose bias is compared with its load, from the first uneven line on."""

    first: list[float]
    """Bias at the start of the trial."""
    bias: list[float]
    """The same in the latest line."""
    load: list[float]
    """Counts minus their mean, of the latest line."""
    changes: int = 0
    """Lines in which the bias moved."""
    agreed: list[float] = msgspec.field(default_factory=lambda: [0.0, 0.0])
    """Load of the experts whose bias rose minus that of those whose bias fell, at both ends …"""
    total: list[float] = msgspec.field(default_factory=lambda: [0.0, 0.0])
    """… and the sum of the absolute loads."""
    path: float = 0.0
    """Sum of all absolute changes of the bias."""
    early: float = 0.0
    lately: float = 0.0
    """Relative variance of the load, at the beginning and now."""

    @property
    def agreement(self) -> list[float]:
        """The share of the load that agrees, at the end with less of it first."""
        return sorted(map(truediv, self.agreed, [max(1.0, total) for total in self.total]))

    def add(self, bias: list[float], counts: Sequence[int]) -> None:
        """Add a line with its bias and counts; one in which the bias rests only replaces the
        latest.
        """
        load = _centred(counts)
        change = _centred([b - a for a, b in zip(self.bias, bias, strict=True)])
        moved = sum(map(abs, change))
        if moved > 1e-9 * (1.0 + max(map(abs, bias))):
            for end, loads in enumerate((self.load, load)):
                self.agreed[end] += sum(map(_agreeing, loads, change))
                self.total[end] += sum(map(abs, loads))
            self.path += moved
            variance = sum(n * n for n in load) / max(1, sum(counts)) ** 2
            self.changes += 1
            if self.changes <= _FIRST:
                self.early += variance / _FIRST
            self.lately += (variance - self.lately) / min(self.changes, _FIRST)
        self.bias = bias
        self.load = load


class SignMemory(msgspec.Struct):
    """Trials and outcomes of all routers of a run; part of a saved state."""

    trials: dict[int, Trial] = {}
    """Router → its trial, while it runs."""
    outcomes: dict[int, int] = {}
    """Router → how its trial ended. Of a wrong sign the number of trials that found it: one or
    two.
    """
    blind: int = 0
    """Lines in a row that had nothing to compare."""
    doubted: list[int] = []
    """Routers found wrong that need a second trial."""
    wrong: dict[int, int] = {}
    """Router → step from which its sign counts as wrong."""

    def resumed(self, step: int) -> "SignMemory":
        """New trials decide about the sign."""
        return SignMemory(wrong={r: at for r, at in self.wrong.items() if at < step})

    def suspects(self, agreement: float) -> list[int]:
        """Those whose trial agrees so far, or is to be repeated."""
        tried = {r: one.agreement for r, one in self.trials.items() if one.changes >= _FIRST}
        agree = [r for r, (low, high) in tried.items() if low >= _WEAK and high >= agreement]
        return sorted({*agree, *self.doubted})

    def conclude(self, router: int, outcome: int, step: int, several: bool) -> None:
        """End the trial of ``router`` with ``outcome``, found at ``step``.

        ``several``: the run has other routers. A single wrong one among them needs a second trial.
        """
        self.outcomes[router] = outcome + (outcome == _WRONG and router in self.doubted)
        del self.trials[router]
        found = [r for r, trials in self.outcomes.items() if trials >= _WRONG]
        right = list(self.outcomes.values()).count(_RIGHT)
        few = several and len(found) <= max(1, right // 2)
        self.doubted = [r for r in found if few and self.outcomes[r] == _WRONG]
        self.wrong = dict.fromkeys(set(found) - set(self.doubted), step) | self.wrong
        if outcome == _RIGHT:
            self.wrong.pop(router, None)  # it was corrected


class BiasSign(msgspec.Struct, frozen=True):
    """The limits of a trial; the state is in ``SignMemory``."""

    uneven: float
    """c below which a router is put on trial."""
    changes: int
    """Changes of the bias that are enough for an outcome."""
    agreement: float
    """Share of the load that has to agree with them."""
    critical: float
    """c at which a third of the changes is enough."""
    several: bool
    """Whether the run has other routers."""

    def observe(self, view: StepView, memory: SignMemory) -> None:
        """Continue the trials with one step, and begin new ones; the result is in
        ``memory.wrong``.
        """
        index = view.collapse_index if memory.blind < _BLIND else None
        if index is None:
            return
        new = self._untried(index, memory)
        if not (memory.trials or new) or not view.has_counts:
            return
        seen = False
        room = len(new) if memory.wrong or memory.doubted else max(0, _MOST - len(memory.trials))
        for router in [*memory.trials, *new[:room]]:
            seen = self._look(view, router, index.values[router], memory) or seen
        memory.blind = 0 if seen else memory.blind + 1

    def _untried(self, index: Signal, memory: SignMemory) -> list[int]:
        """Uneven ones, or those whose sign was wrong: the most uneven first."""
        if index.low >= self.uneven and not memory.wrong:
            return []
        c, wrong = index.values, memory.wrong
        known = {r for r, outcome in memory.outcomes.items() if outcome or c[r] >= self.critical}
        known = memory.trials.keys() | (known - set(memory.doubted))
        low = [r for r in range(len(c)) if r not in known and (c[r] < self.uneven or r in wrong)]
        return sorted(low, key=c.__getitem__)

    def _look(self, view: StepView, router: int, c: float, memory: SignMemory) -> bool:
        """False if the line has no bias or no counts of it."""
        counts, bias = view.full_counts(router), view.biases(router)
        if counts is None or bias is None or len(bias) != len(counts):
            return False
        trial = memory.trials.get(router)
        if trial is None or len(trial.bias) != len(bias):
            memory.trials[router] = Trial(bias, bias, _centred(counts))
            return True
        trial.add(bias, counts)
        second = router in memory.doubted
        outcome = self._outcome(trial, 1.0 if second else c, second)
        if outcome is not None:
            memory.conclude(router, outcome, view.step, self.several)
        return True

    def _outcome(self, trial: Trial, c: float, second: bool) -> int | None:
        """``None`` while the trial is running."""
        changes = trial.changes
        low, high = trial.agreement
        if changes >= _RIGHT_AFTER and low < -_WEAK:
            return _RIGHT
        most = 2.5 * self.changes
        enough = (
            changes >= most
            or (second and changes >= self.changes)
            or (changes >= self.changes and trial.lately >= _GROWN * trial.early)
            or (changes >= _FEW and c < self.critical)
        )
        if enough and low >= _WEAK and high >= self.agreement:
            net = _centred([b - a for a, b in zip(trial.first, trial.bias, strict=True)])
            if sum(map(abs, net)) >= _DIRECTED * trial.path:
                return _WRONG
        return _UNDECIDED if changes >= most else None


def _agreeing(load: float, change: float) -> float:
    """The load of an expert: negative where the change of its bias has another sign, or none."""
    if load * change > 0:
        return abs(load)
    return -abs(load)


def _centred(values: Sequence[float]) -> list[float]:
    """Only differences between biases matter."""
    mean = sum(values) / len(values)
    return [value - mean for value in values]
