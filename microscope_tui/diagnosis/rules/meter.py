"""METER: measurement faults that imitate router faults (see ``formula``)."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import msgspec

from microscope_tui import measures
from microscope_tui.diagnosis.context import AtMost, RuleLimits
from microscope_tui.diagnosis.episodes import (
    WHOLE_RUN,
    Episode,
    Facts,
    Found,
    Reading,
    Readings,
    Reason,
    Severity,
)
from microscope_tui.diagnosis.rules.base import Rule, experts_of, number
from microscope_tui.diagnosis.signals import StepView, value_at
from microscope_tui.runlog import RunRecord

_ALL_CHOICES = ("exact", "shares", "none")
"""Sources that hold every choice of the tokens they count: first choices may all be one expert's,
as may the pairs on the experts of one rank."""
CONSTRUCTED = ("sinkhorn", "expert_choice", "base")
"""Methods that make the load even by themselves: equal counts are not a fault."""
_ROUNDED = 2.0**-22  # of a number that a source holds in fp32
_EVEN, _ON_K = 0.5, 1e-3  # a collapse index that no other rule reports; k experts have all tokens
_MANY, _RECENT, _FEWEST = 0.3, 100, 20  # share of wrong sums in the last lines, at least 20
_FORGOTTEN = 200  # right sums in a row
_MIXED = 2654435761  # Knuth's multiplicative hash
_ONCE = (
    "count all k choices of a token, each expert once; where only the first choice is known, write "
    'top_k 1 and "counts": "top1" in the header'
)
_TEXTS = {
    Reason.NON_FINITE: (
        "the {reading} is NaN or infinite; NaN can look like every token on expert 0",
        "go back to a checkpoint with finite values, then lower the learning rate or compute the "
        "router in fp32",
    ),
    Reason.MULTIPLE: (
        "counts sum to {total:,.0f}, {times} tokens × k ({expected:,.0f})",
        "count all top_k choices, of the first forward pass only (activation checkpointing "
        "recomputes it), and make tokens cover the same ranks (world size) and micro-batches",
    ),
    Reason.SUM: (
        "counts sum to {total:,.0f}, tokens × k is {expected:,.0f}",
        "count real tokens only (no padding), all k choices, over all ranks and micro-batches",
    ),
    Reason.UNEQUAL: (
        "one expert has {total:,.0f} tokens, another {expected:,.0f}: where experts choose, all "
        "have as many",
        "sum the counts over all ranks, or correct balance.method in the header",
    ),
    Reason.LOAD: (
        "max_load is {total:.2f}, but an expert that every token chooses has {expected:.2f} times "
        "its fair share",
        _ONCE,
    ),
    Reason.EFFECTIVE: (
        "effective_experts is {total:.2f}, but tokens that choose {expected:.0f} experts use at "
        "least {expected:.0f}",
        _ONCE,
    ),
    Reason.WIDTH: (
        "{total:.0f} counts in a row, the header has {expected:.0f} experts",
        "write one count per expert, or correct num_experts in the header",
    ),
    Reason.SUMMARY: (
        "effective_experts is {total:.2f}, its counts give {expected:.2f}",
        "compute the summaries from the counts of the same step, over all ranks",
    ),
    Reason.REPEATED: (
        "its counts are all the same in {total:.0f} lines in a row, which different tokens never "
        "give",
        "fill the buffer of the counts anew in every step: a CUDA graph or a missing reset keeps "
        "old ones",
    ),
    Reason.SHARED: (
        "its counts are those of another layer, in each of {total:.0f} lines",
        "give every layer a buffer and an index of its own",
    ),
    Reason.TIED: (
        "experts {experts} have equal counts in each of {total:.0f} lines",
        "compute the router logits in fp32 (in bf16 they tie), and check that no router row is a "
        "copy of another",
    ),
    Reason.ONE_BATCH: (
        "the counts of all layers are the same in {total:.0f} lines in a row: one batch repeats, "
        "and nothing is learned",
        "nothing, if this is intended; otherwise check the order of the data and the learning rate",
    ),
    Reason.FORCED: (
        "all experts have the same count to ±1, which no learned router produces",
        "turn off the forced-balance debug flag",
    ),
}
_LINES = 3  # with the same row
_RARE = 3e-5  # of one repetition; of two it is below 1e-9
_LEAST = 8.0  # v of an expert that is evidence: two are equal with a chance below 0.2
_ALWAYS = 20  # lines of a tie: 0.2 to this power, for at most 256² pairs
_STILL = 2e-3  # share of the loss, and half as many nats: the same batch again


class Repeats(msgspec.Struct):
    """Counts that repeat: a buffer that is not filled again, or one that two layers share; ties.

    If v is the variance of a count, the difference of two lines has 2v: they are equal with
    probability 1 ÷ √(4πv). Where T tokens choose independently, v = n (1 − n ÷ T); real tokens
    depend on each other and have more. A quarter is assumed here, since balancing may keep counts
    together: 1 ÷ √(πv). The chance of a row is the product over its experts but one, whose count
    follows from the others. Where v < 8 an expert is not evidence: one that every sequence uses
    once always has the same count.

    Part of a saved state.
    """

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


class MeterLimits(RuleLimits, frozen=True):
    """Measurement faults are exact, so three steps are enough."""

    needed: int = 3
    window: int = 10
    leave: int = 3
    first_steps: int = 8
    """Counts are checked on the first steps with counts, then on three after every ``every``."""
    every: int = 58
    luck: float = 2e-3
    """Probability, in one step, that independent choices give counts equal to ±1."""
    summary_error: float = 0.02
    """Tolerance between the summary of a line and its own counts."""

    relations = (AtMost("needed", "window"), AtMost("luck", 1), AtMost("summary_error", 1))


class Sums(msgspec.Struct):
    """The sums of one router since its first wrong one."""

    since: int
    """Step of the first wrong one."""
    lines: int = 0
    """Lines since then …"""
    wrong: int = 0
    """… and those with a wrong sum."""
    share: float = 0.0
    """Of the last lines that are wrong; low at first."""
    right: int = 0
    """Right ones in a row."""
    severity: Severity | None = None
    """At the last wrong one."""


class Memory(msgspec.Struct):
    left: int
    """Remaining checks in a row, at steps with counts."""
    wait: int = 0
    """Lines until the next check."""
    had_counts: bool = False
    had_entropy: bool = False
    repeats: Repeats = msgspec.field(default_factory=Repeats)
    repeating: list[int] = []
    """Routers found by the last check of that."""
    sums: dict[int, Sums] = {}
    """Routers with a wrong sum, whose sum is checked at every step."""


class Meter(Rule[MeterLimits, Memory]):
    name = "METER"
    subject = "Meter fault"
    means = (
        "The logged numbers do not measure the routing: fix the counting first. Meanwhile all "
        "other rules are suspended for these layers; lines with a wrong sum, if few, are left out."
    )
    formula = (
        "counts ≠ tokens × k, a multiple of it, one above tokens, all equal to ±1, unlike their "
        "own summary, fewer than k effective experts, or NaN; 3 of 10 checks; of the sums more "
        "than 30 % of the lines, below that a warning from the third on"
    )
    in_warm_up = True
    judges_one_step = True
    turn = 10
    cause_rank = 10
    mutes_all = True
    remedy_by_cause = True

    def set_up(self) -> None:
        self.window, self.needed = self.limits.window, self.limits.needed
        self.leave = self.limits.leave
        self.luck = self.limits.luck
        if self.context.one_step:  # one check must be as certain as several
            self.luck **= self.needed
            self.needed = self.leave = 1
        self.exact = self.context.run.counts == "exact" and bool(self.routers)
        self.learned = self.context.run.balance.get("method") not in CONSTRUCTED
        whole = self.context.run.counts in _ALL_CHOICES
        self.highest = [math.inf] * len(self.routers)
        for index, router in enumerate(self.routers):
            if whole and router.num_experts > router.top_k > 0:
                self.highest[index] = router.num_experts / router.top_k
        """Load of an expert that every token chooses."""
        self.slack = 1.0 + self.limits.summary_error
        self.least = self.slack * min(self.highest, default=math.inf)
        self.most = max((r.top_k / self.slack for r in self.routers), default=0.0)

    def start(self) -> None:
        self.memory = Memory(self.limits.first_steps)

    def restart(self, step: int) -> None:
        old = self.memory
        first = self.limits.first_steps
        self.memory = Memory(first, had_counts=old.had_counts, had_entropy=old.had_entropy)

    def read(self, view: StepView) -> Readings | None:
        memory = self.memory
        found: Found = {}
        for index, name in self._not_finite(view).items():
            found[index] = _fault(cause=Reason.NON_FINITE, reading=name)
        impossible = self._impossible(view)
        due = self._due(view)
        if memory.repeating and not due:
            found = dict.fromkeys(memory.repeating) | found
        asked = {*memory.sums, *impossible, *self.tracks}
        if due or (self.exact and self._sum(view, self._turn(view.step))):
            asked = set(range(len(self.routers)))
        elif not (found or asked):
            return None
        for index in asked - found.keys() - {WHOLE_RUN}:
            self._settle(view, index, impossible.get(index), found)
        if due and self.exact and self.learned:
            self._repeating(view, found)
        return found

    def _due(self, view: StepView) -> bool:
        """Whether to check the counts: some lines in a row, then none for a while."""
        memory, limits = self.memory, self.limits
        if memory.wait > 0:
            memory.wait -= 1
        if memory.wait or not view.has_counts:
            return False
        memory.had_counts = True
        if memory.left == limits.needed:
            memory.repeats.same = {}  # the lines before this one were not checked
        memory.left -= 1
        if not memory.left:
            memory.left = limits.needed
            memory.wait = limits.every
        return True

    def _turn(self, step: int) -> int:
        """The router whose sum is checked: in an order without a period, as wrong lines have."""
        return (step * _MIXED >> 16) % (len(self.routers) or 1)

    def _settle(self, view: StepView, index: int, impossible: Reading | None, found: Found) -> None:
        own = self._add_sum(view, index)
        if own is None or own.severity is None:
            own = self._fault_in(view, index) or impossible or own
        if own is not None:
            found[index] = own
        elif self.memory.had_counts and view.counts(index) is None:
            found[index] = None  # the line does not show whether they are right again

    def _impossible(self, view: StepView) -> dict[int, Reading]:
        """Routers whose summaries k choices per token cannot give, if none chose fewer."""
        loads, effective = view.signal("max_load"), view.signal("effective_experts")
        found: dict[int, Reading] = {}
        if loads is not None and loads.high > self.least:
            for index, (load, most) in enumerate(zip(loads.values, self.highest, strict=True)):
                if load > self.slack * most:
                    found[index] = _fault(cause=Reason.LOAD, total=load, expected=most)
        elif effective is not None and effective.low < self.most:
            for index, (value, r) in enumerate(zip(effective.values, self.routers, strict=True)):
                if self.slack * value < r.top_k and self.highest[index] < math.inf:
                    found[index] = _fault(cause=Reason.EFFECTIVE, total=value, expected=r.top_k)
        return {i: fault for i, fault in found.items() if not _unrouted(view, i)}

    def _sum(self, view: StepView, index: int) -> Facts | None:
        """What is wrong with the sum of a row; empty if nothing is, ``None`` if it is unknown."""
        counts, tokens = view.full_counts(index), view.tokens_of(index)
        if not self.exact or counts is None or tokens is None or not self.routers[index].top_k:
            return None
        least, total = view.sums[index]
        if self.context.run.balance.get("method") == "expert_choice":
            most = max(counts)
            unequal: Facts = {"cause": Reason.UNEQUAL, "total": most, "expected": least}
            return unequal if most > least else {}
        total += _unrouted(view, index)
        expected = tokens * self.routers[index].top_k
        if total == expected or abs(total - expected) <= max(0.5, _ROUNDED * expected):
            return {}
        cause = Reason.SUM
        if total > 0 and (total % round(expected) == 0 or expected / total in (2, 4, 8)):
            cause = Reason.MULTIPLE
        ranks = self.context.run.expert_parallel_size
        each = len(counts) // ranks
        empty = [r for r in range(ranks) if not any(counts[r * each : (r + 1) * each])]
        lacks = f"; all experts of rank {empty[0]} have 0" if len(empty) == 1 < each else ""
        return {"cause": cause, "total": total, "expected": round(expected), "lacks": lacks}

    def _add_sum(self, view: StepView, index: int) -> Reading | None:
        """A line with a wrong sum is left out of everything else."""
        facts, known = self._sum(view, index), self.memory.sums
        if facts is None or not (facts or index in known):
            return None
        sums = known.setdefault(index, Sums(view.step))
        sums.lines += 1
        sums.share += (bool(facts) - sums.share) / min(max(sums.lines, _FEWEST), _RECENT)
        if not facts:
            sums.right += 1
            if sums.right >= (self.window if sums.severity is Severity.ERROR else _FORGOTTEN):
                del known[index]
            return Reading(None, clear=sums.severity is None)
        sums.wrong += 1
        sums.right = 0
        view.leave_out(index)
        if sums.wrong >= self.needed:
            many = sums.share > _MANY or sums.wrong == sums.lines
            sums.severity = Severity.ERROR if many else Severity.WARN
        facts = {**facts, "wrong": sums.wrong, "lines": sums.lines}
        return Reading(sums.severity, certain=True, value=1.0, facts=facts, since=sums.since)

    def _fault_in(self, view: StepView, index: int) -> Reading | None:
        counts, router = view.counts(index), self.routers[index]
        if counts is None:
            return None
        if router.num_experts and len(counts) != router.num_experts:
            return _fault(cause=Reason.WIDTH, total=len(counts), expected=router.num_experts)
        least, total = view.sums[index]
        forced = self.learned and router.num_experts > router.top_k > 0
        forced = forced and total <= (least + 1) * len(counts) and max(counts) - least <= 1
        # Scaled shares are often equal, which is not evidence.
        if forced and self.context.run.counts != "shares" and _luck(counts) < self.luck:
            return _fault(cause=Reason.FORCED, total=total, expected=total)
        # Expensive: each check covers a quarter of the routers, and all that were wrong before.
        every = index in self.tracks or self.context.one_step
        logged = view.signal("effective_experts")
        if logged is None or not (every or (index + view.step) % 4 == 0):
            return None
        value, known = logged.values[index], measures.effective_experts(counts)
        if known is None or not abs(value - known) > self.limits.summary_error * known:
            return None
        return _fault(cause=Reason.SUMMARY, total=value, expected=known)

    def _repeating(self, view: StepView, found: Found) -> None:
        """What looks like a collapse or a dead expert may repeat: other rules report it."""
        balance, record = view.collapse_index, view.record
        rows, tokens = dict[int, list[int]](), dict[int, float]()
        for index, router in enumerate(self.routers):
            row, known = view.full_counts(index), view.tokens_of(index)
            sick = balance is not None and balance.values[index] < _EVEN
            chosen = router.num_experts > router.top_k > 0 and found.get(index) is None
            if row and known and chosen and not sick and view.sums[index][0]:
                rows[index], tokens[index] = row, known
        fixed = not self.context.trains or record.learning_rate == 0
        repeated = self.memory.repeats.add(rows, tokens, record.loss, fixed=fixed)
        self.memory.repeating = list(repeated)
        for index, facts in repeated.items():
            severity = Severity.INFO if facts["cause"] == Reason.ONE_BATCH else Severity.ERROR
            found[index] = Reading(severity, certain=True, value=1.0, facts=facts)

    def _not_finite(self, view: StepView) -> dict[int, str]:
        """NaN, even where a writer omits it: no entropy, and all counts on the first k experts."""
        if not math.isfinite(view.record.loss or 0.0):
            return {} if self.context.trains else {WHOLE_RUN: "loss"}  # see DIVERGED
        if found := view.not_finite():
            return found
        if view.record.router.entropy is not None:
            self.memory.had_entropy = True
            return {}
        balance = view.plain_index if self.memory.had_entropy else None
        values = balance.values if balance is not None else ()
        rows = {index: view.full_counts(index) for index, c in enumerate(values) if c < _ON_K}
        ends = {index: row[self.routers[index].top_k :] for index, row in rows.items() if row}
        return {index: "router entropy" for index, end in ends.items() if not any(end)}

    @staticmethod
    def words(worst: Episode, run: RunRecord) -> tuple[str, str]:
        why, remedy = _TEXTS[Reason(str(worst.reason))]
        total, expected = number(worst, "total"), number(worst, "expected")
        wrong, lines = number(worst, "wrong"), number(worst, "lines")
        if wrong < lines:
            why = f"in {wrong:,.0f} of {lines:,.0f} lines {why}"
        if worst.reason == Reason.NON_FINITE and run.profile == "eval":
            remedy = "evaluate another checkpoint, or compute the router in fp32"
        times = total / expected if expected else 0.0
        why += str(worst.facts.get("lacks", ""))
        return why.format(
            total=total,
            expected=expected,
            times=f"1/{1 / times:.0f} of" if 0 < times < 1 else f"{times:.0f} times",
            experts=experts_of(worst),
            reading=worst.facts.get("reading"),
        ), remedy


def _fault(**facts: float | str | tuple[int, ...]) -> Reading:
    return Reading(severity=Severity.ERROR, value=1.0, facts=facts)


def _unrouted(view: StepView, index: int) -> int:
    pairs = value_at(view.record.router.unrouted, index)
    return 0 if pairs is None or not 0 <= pairs < math.inf else round(pairs)


def _luck(counts: list[int]) -> float:
    """That Poisson counts of this mean are all one of its two neighbours."""
    expected = sum(counts) / len(counts)
    if expected <= 1:
        return 1.0
    one: float = min(1.0, 2.0 / math.sqrt(2.0 * math.pi * expected))
    return one ** (len(counts) - 1)
