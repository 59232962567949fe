"""What a rule reads in one step (``Reading``), and what it reports (``Episode``, ``Finding``)."""

import math
from collections.abc import Iterable, Iterator, Mapping
from enum import IntEnum, StrEnum
from itertools import pairwise

import msgspec
from msgspec.structs import replace

from microscope_tui.runlog import RouterInfo

_MOST_GRADES = 50
WHOLE_RUN = -1
"""Router index for trouble of the whole run (a gradient, a setting)."""

EXACT, PER_STEP = "exact counts", "per-step summaries only"


class Severity(IntEnum):
    """How bad it is. ERROR is a measurement fault: no verdict can be trusted."""

    INFO = 1
    WARN = 2
    CRITICAL = 3
    ERROR = 4

    @property
    def label(self) -> str:
        """As printed."""
        return {1: "info", 2: "warn", 3: "crit", 4: "error"}[self.value]

    @property
    def letter(self) -> str:
        """One letter, so that colour is never the only sign."""
        return {1: "I", 2: "W", 3: "C", 4: "M"}[self.value]


class Reason(StrEnum):
    """Why a rule fired, where it has several reasons: the fact ``cause`` of its episodes."""

    # A setting that LINT reports
    ADAPTERS_MISS_EXPERTS = "adapters miss experts"
    AUX_IGNORED = "trainer aux ignored"
    AUX_NOT_APPLIED = "aux not applied"
    AUX_POOLED = "aux pooled"
    AUX_TOO_STRONG = "aux too strong"
    BIAS_LOST = "bias lost"
    BIAS_MOVES = "bias moves, router frozen"
    BIAS_NOT_UPDATED = "bias not updated"
    BIAS_STANDS = "bias does not move"
    BY_CONSTRUCTION = "balanced by construction"
    FEW_TOKENS = "few tokens"
    LAYERS_POOLED = "layers pooled"
    MISSING_TARGETS = "missing targets"
    NO_BALANCING = "no balancing"
    ONE_RANK = "one rank"
    ROUTER_FROZEN = "router frozen"
    TOP1_NORMALISED = "top-1 normalised"
    WRONG_SIGN = "wrong bias sign"
    # A fault that METER reports
    EFFECTIVE = "effective"
    FORCED = "forced"
    LOAD = "load"
    MULTIPLE = "multiple"
    NON_FINITE = "non-finite"
    ONE_BATCH = "one batch"
    REPEATED = "repeated"
    SHARED = "shared"
    SUM = "sum"
    SUMMARY = "summary"
    TIED = "tied"
    UNEQUAL = "unequal"
    WIDTH = "width"
    # Of OSCILLATION, OVERLOAD, STARVED, LOGITS and STILL, beside their usual one
    ALTERNATING = "alternating data"
    OF_RANK = "rank"
    IN_TURN = "over history"
    OUT_OF_RANGE = "range"
    UNCHANGED = "unchanged"
    RESTS = "rests"


Fact = float | str | tuple[int, ...]
Facts = Mapping[str, Fact]


class Reading(msgspec.Struct, frozen=True):
    """One evaluation of one rule on one router, before persistence."""

    severity: Severity | None
    """Of this evaluation alone; ``None`` inside the limits."""
    clear: bool = False
    """Inside the limits by the margin that recovery needs."""
    value: float = 0.0
    """What is compared with ``limit``, in the unit of the rule."""
    limit: float = 0.0
    """That of this severity; 0 where there is none."""
    held: bool = False
    """Too young for an alarm: it mutes other rules, but neither opens nor extends an episode."""
    certain: bool = False
    """Needs no persistence and ignores the warm-up."""
    settled: bool = False
    """The router was healthy before: ignores the warm-up, but needs persistence."""
    facts: Facts = {}
    """The numbers for the text."""
    confidence: str = EXACT
    """What the value was derived from, in words."""
    since: int | None = None
    """First step, if the rule can date it better than the persistence."""
    until: int | None = None
    """Step at which it is over, if it is reported afterwards."""


Readings = Mapping[int, Reading | None]
"""A missing router is clear; ``None``: no evaluation at this step."""
Found = dict[int, Reading | None]
"""The same, while a rule collects them."""


def graded(value: float, warn: float, critical: float = math.inf) -> Severity | None:
    """Of a value for which high is bad; ``None`` up to the limit ``warn``."""
    if value > critical:
        return Severity.CRITICAL
    return Severity.WARN if value > warn else None


class Grade(msgspec.Struct, frozen=True):
    """Severity of an episode from a step on, with the worst numbers so far."""

    step: int
    """From here on."""
    severity: Severity
    value: float
    limit: float = 0.0
    facts: dict[str, Fact] = msgspec.field(default_factory=dict)
    confidence: str = EXACT


class Present(msgspec.Struct, frozen=True):
    """The latest evaluation of an open episode; its other numbers are the worst."""

    step: int
    value: float
    """In the unit of the rule, like that of the episode."""
    limit: float = 0.0
    facts: dict[str, Fact] = {}
    inside: bool = False
    """Within the limits, but not yet for long enough to count as recovered."""
    left: int = 0
    """Evaluations inside the limits, in a row, that are still needed for that."""


class Episode(msgspec.Struct, kw_only=True):
    """One alarm of one rule in one router, or in the whole run."""

    rule: str
    """Name of the rule that reported it."""
    router_index: int = WHOLE_RUN
    """``WHOLE_RUN`` for trouble of the whole run."""
    router: RouterInfo | None = None
    """``None`` for the whole run."""
    severity: Severity
    """The worst so far."""
    onset: int
    """First step of the evidence, not the step of the alarm."""
    alarm: int
    """Step at which it was enough."""
    last: int
    """Latest step of it."""
    value: float
    """The worst value so far; limit, facts and confidence are of the same reading."""
    limit: float
    facts: dict[str, Fact] = msgspec.field(default_factory=dict)
    """The numbers for the text, by name."""
    confidence: str = EXACT
    """What the value was derived from, in words."""
    worst_at: int = 0
    """Step at which the value was reached."""
    now: Present | None = None
    """The latest evaluation; ``None`` if nothing updates the episode, or it has recovered."""
    recovered_at: int | None = None
    """First step without it; ``None`` while it is active."""
    led_to: str = ""
    """The rule whose critical episode ended this one."""
    recurrence: int = 0
    """Number of earlier episodes of this rule in this router."""
    grades: list[Grade] = msgspec.field(default_factory=list)
    """The alarm, and every step at which the severity rose."""

    @property
    def active(self) -> bool:
        return self.recovered_at is None

    @property
    def warns(self) -> bool:
        """Whether it is at least a warning, and not just a note."""
        return self.severity >= Severity.WARN

    @property
    def reason(self) -> Fact | None:
        """A ``Reason``, where the rule has several; else ``None``."""
        return self.facts.get("cause")

    def course(self) -> list[tuple[int, Severity]]:
        """First step (of the first one the onset) and severity of each grade."""
        first = self.grades[0] if self.grades else self
        later = [(grade.step, grade.severity) for grade in self.grades[1:]]
        return [(self.onset, first.severity), *later]

    def stretches(self, newest: int) -> Iterator[tuple[int, int, Severity]]:
        """First step, last step and severity of each grade, up to ``newest`` while it is active."""
        over = newest + 1 if self.active else max(self.onset + 1, self.recovered_at or 0)
        for (since, severity), (after, _) in pairwise([*self.course(), (over, self.severity)]):
            yield since, after - 1, severity

    def grade(self, step: int) -> None:
        """Record the present severity and numbers as those from ``step`` on."""
        self.grades.append(
            Grade(step, self.severity, self.value, self.limit, self.facts, self.confidence)
        )
        del self.grades[1:-_MOST_GRADES]

    def make_information(self) -> None:
        """Lower it to a note for good: the trouble of a start that has healed."""
        self.severity = Severity.INFO
        self.grades = []
        self.grade(self.alarm)

    def forget_from(self, step: int) -> None:
        """Forget ``step`` and all later steps; it exists from its onset on."""
        self.last = min(self.last, step - 1)
        if self.now is not None and self.now.step >= step:
            self.now = None
        if self.recovered_at is not None and self.recovered_at >= step:
            self.recovered_at = None
            self.led_to = ""
        self.grades = [grade for grade in self.grades if grade.step < step] or self.grades[:1]
        worst = max(self.grades, key=lambda grade: (grade.severity, grade.step))
        self.severity = worst.severity
        if self.worst_at >= step:
            self.value = worst.value
            self.limit = worst.limit
            self.worst_at = worst.step
            self.facts = worst.facts
            self.confidence = worst.confidence

    def as_of(self, step: int) -> "Episode":
        """The episode as of ``step``, in hindsight."""
        then = replace(self)
        then.forget_from(step + 1)
        return then


class Finding(msgspec.Struct, frozen=True):
    """The same trouble in one or more routers, the worst first."""

    episodes: tuple[Episode, ...]
    """At least one, all of one rule."""

    @property
    def worst(self) -> Episode:
        """The episode that the text takes its numbers from."""
        return self.episodes[0]

    @property
    def rule(self) -> str:
        return self.worst.rule

    @property
    def severity(self) -> Severity:
        """The highest of the episodes."""
        return max(episode.severity for episode in self.episodes)

    @property
    def onset(self) -> int:
        """The earliest of the episodes."""
        return min(episode.onset for episode in self.episodes)

    @property
    def last(self) -> int:
        """The latest step of any of them."""
        return max(episode.last for episode in self.episodes)

    @property
    def active(self) -> bool:
        """Whether any of them is."""
        return any(episode.active for episode in self.episodes)

    @property
    def layers(self) -> tuple[str, ...]:
        """In forward order; empty for the whole run."""
        ordered = sorted(self.episodes, key=lambda episode: episode.router_index)
        return tuple(dict.fromkeys(e.router.name for e in ordered if e.router is not None))


def overall(findings: Iterable[Finding]) -> Severity:
    """The overall severity of a run: INFO is healthy, ERROR forbids a verdict.

    A fault of the meter forbids it while it lasts, unless there is a critical finding in a router
    without such a fault. A fault that is over is a warning.
    """
    episodes = [episode for finding in findings for episode in finding.episodes]
    broken = {e.router_index for e in episodes if e.severity is Severity.ERROR and e.active}
    critical = [e for e in episodes if e.severity is Severity.CRITICAL]
    if any(WHOLE_RUN not in broken and e.router_index not in broken for e in critical):
        return Severity.CRITICAL
    if broken:
        return Severity.ERROR
    return Severity.WARN if any(e.warns for e in episodes) else Severity.INFO


def key_of(run: str, finding: Finding) -> str:
    """A stable key for the same trouble of the same run, also when more layers join it."""
    worst = min(finding.episodes, key=lambda episode: (episode.onset, episode.router_index))
    return f"{run} {finding.rule} {worst.router_index} {worst.onset}"
