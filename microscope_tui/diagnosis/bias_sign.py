"""Detects a bias update with the wrong sign: a busy expert must lose bias, an idle one gain it.

A router with an uneven load is put on trial: from line to line the change of every expert's bias is
compared with its load. Writers log the bias that a step was routed with or the one after its
update, so the change must agree with the load at both of its ends; where the load swings, it
disagrees with one of them. A bias that moves back and forth is not evidence: counts that are logged
only sometimes can show a swing in reverse. Each router is tried once per start of a run.
"""

from collections.abc import Sequence

import msgspec

from microscope_tui.diagnosis.context import Context
from microscope_tui.diagnosis.signals import StepView

_MOST = 8  # routers on trial at the same time
_BLIND = 64  # lines with counts and without a bias, after which none is expected
_FIRST = 16  # changes whose load is compared with the latest
_GROWN = 1.2  # a wrong sign makes the load less even: its variance grows by this factor
_WEAK = 0.5  # agreement with the load at the other end of the change, which is noisier
_DIRECTED = 0.6  # share of the path of the bias that leads away from its start
_FEW = 32  # changes that are enough where the router is critically collapsed
_RIGHT_AFTER = 40  # changes that show that the sign is right


class Trial(msgspec.Struct):
    """One router whose bias is compared with its load."""

    first: list[float]
    """Bias at the start of the trial."""
    bias: list[float]
    load: list[float]
    """Counts minus their mean, of the latest line."""
    changes: int = 0
    agreed: list[float] = msgspec.field(default_factory=lambda: [0.0, 0.0])
    """Load of the experts whose bias rose minus that of those whose bias fell, at both ends …"""
    total: list[float] = msgspec.field(default_factory=lambda: [0.0, 0.0])
    """… and the sum of the absolute loads."""
    path: float = 0.0
    early: float = 0.0
    lately: float = 0.0
    """Relative variance of the load, at the beginning and now."""


class SignMemory(msgspec.Struct):
    """Routers on trial, and the outcomes: 1 wrong, 0 undecided, −1 right."""

    trials: dict[int, Trial] = {}
    outcomes: dict[int, int] = {}
    blind: int = 0
    wrong_at: int | None = None
    """Step from which the sign counts as wrong."""


class BiasSign:
    """The trials of one run."""

    def __init__(self, context: Context) -> None:
        self._limits = context.limits.LINT
        self._critical = context.limits.COLLAPSE.critical
        balance = context.run.balance
        self.moves = (
            context.trains
            and balance.get("method") not in ("aux", "none")
            and balance.get("bias_update_rate") != 0
        )
        """Whether there is a bias with an update rate."""

    def observe(self, view: StepView, memory: SignMemory) -> bool:
        """Add one step; true if this changed whether the sign counts as wrong."""
        index = view.collapse_index
        if not self.moves or index is None or memory.blind >= _BLIND:
            return False
        suspects = [
            router
            for router, value in enumerate(index.values)
            if value < self._limits.sign_uneven and router not in memory.outcomes
        ]
        if (not memory.trials and not suspects) or not view.has_counts:
            return False
        suspects.sort(key=index.values.__getitem__)
        new = [router for router in suspects if router not in memory.trials]
        seen = False
        for router in [*memory.trials, *new[: _MOST - len(memory.trials)]]:
            seen = self._look(view, router, index.values[router], memory) or seen
        memory.blind = 0 if seen else memory.blind + 1
        return self._judge(view.step, memory)

    def _look(self, view: StepView, router: int, c: float, memory: SignMemory) -> bool:
        """Add one line of a router on trial; false if it has no bias or no counts."""
        counts, bias = view.full_counts(router), view.biases(router)
        if counts is None or bias is None or len(bias) != len(counts):
            return False
        load = _centred(counts)
        trial = memory.trials.get(router)
        if trial is None or len(trial.bias) != len(bias):
            memory.trials[router] = Trial(bias, bias, load)
            return True
        change = _centred([b - a for a, b in zip(trial.bias, bias, strict=True)])
        moved = sum(map(abs, change))
        if moved > 1e-9 * (1.0 + max(map(abs, bias))):
            _count(trial, change, load)
            trial.path += moved
            variance = sum(n * n for n in load) / max(1, sum(counts)) ** 2
            trial.changes += 1
            if trial.changes <= _FIRST:
                trial.early += variance / _FIRST
            trial.lately += (variance - trial.lately) / min(trial.changes, _FIRST)
        trial.bias, trial.load = bias, load
        outcome = self._outcome(trial, c)
        if outcome is not None:
            memory.outcomes[router] = outcome
            del memory.trials[router]
        return True

    def _outcome(self, trial: Trial, c: float) -> int | None:
        """The outcome of the trial; ``None`` while it is running."""
        changes, limits = trial.changes, self._limits
        low, high = sorted(
            a / t if t else 0.0 for a, t in zip(trial.agreed, trial.total, strict=True)
        )
        if changes >= _RIGHT_AFTER and low < -_WEAK:
            return -1
        net = sum(map(abs, _centred([b - a for a, b in zip(trial.first, trial.bias, strict=True)])))
        most = 2.5 * limits.sign_changes
        agrees = low >= _WEAK and high >= limits.sign_agreement and net >= _DIRECTED * trial.path
        enough = (
            changes >= most
            or (changes >= limits.sign_changes and trial.lately >= _GROWN * trial.early)
            or (changes >= _FEW and c < self._critical)
        )
        if agrees and enough:
            return 1
        return 0 if changes >= most else None

    def _judge(self, step: int, memory: SignMemory) -> bool:
        outcomes = list(memory.outcomes.values())
        wrong, right = outcomes.count(1), outcomes.count(-1)
        before = memory.wrong_at
        if before is None and wrong and wrong >= 2 * right:
            memory.wrong_at = step
        elif before is not None and right > wrong:
            memory.wrong_at = None  # it was corrected
        return memory.wrong_at != before


def again(memory: SignMemory, step: int) -> SignMemory:
    """The state of a run that resumes at ``step``: new trials decide whether the sign is right."""
    at = memory.wrong_at
    return SignMemory(wrong_at=at if at is not None and at < step else None)


def _count(trial: Trial, change: Sequence[float], load: list[float]) -> None:
    for end, loads in enumerate((trial.load, load)):
        pairs = zip(loads, change, strict=True)
        trial.agreed[end] += sum(abs(n) if n * moved > 0 else -abs(n) for n, moved in pairs)
        trial.total[end] += sum(map(abs, loads))


def _centred(values: Sequence[float]) -> list[float]:
    """Minus their mean: only differences between biases matter."""
    mean = sum(values) / len(values)
    return [value - mean for value in values]
