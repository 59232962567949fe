"""An alarm is an episode: it starts at a step, in a router, and ends or goes on."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum

from microscope_tui.diagnosis.thresholds import GROUP_STEPS
from microscope_tui.runlog.records import RouterInfo


class Severity(IntEnum):
    """How bad it is. ERROR is a fault of the measurement: no verdict can be trusted."""

    INFO = 1
    WARN = 2
    CRITICAL = 3
    ERROR = 4

    @property
    def label(self) -> str:
        """The word in JSON and on screen."""
        return {1: "info", 2: "warn", 3: "crit", 4: "error"}[self.value]

    @property
    def letter(self) -> str:
        """One letter, so that colour is never the only carrier."""
        return {1: "I", 2: "W", 3: "C", 4: "M"}[self.value]


CAUSES_FIRST = ("METER", "COLLAPSE", "DEAD", "DROPS")

Facts = Mapping[str, float | str | tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Reading:
    """What one rule says about one router at one step."""

    severity: Severity | None
    """What this evaluation alone amounts to; ``None`` inside the limits."""
    clear: bool
    """Inside the limits by the margin that recovery needs."""
    value: float = 0.0
    limit: float = 0.0
    urgent: bool = False
    """So bad that, if it lasts, even the warm-up is no excuse."""
    facts: Facts = field(default_factory=dict)
    """The numbers that the text needs."""
    confidence: str = "exact counts"
    since: int | None = None
    """First step of the trouble, where a summed window hides it behind older, sound steps."""


@dataclass(slots=True, kw_only=True)
class Episode:
    """One stretch of trouble of one rule in one router."""

    rule: str
    router_index: int
    router: RouterInfo
    severity: Severity
    onset: int
    """First step of the evidence, not the step of the alarm."""
    alarm: int
    """Step at which the evidence was enough to speak."""
    last: int
    """Latest step with evidence."""
    value: float
    """The worst value so far."""
    limit: float
    facts: Facts
    confidence: str
    recovered_at: int | None = None
    recurrence: int = 0
    """How many earlier episodes of this rule this router had."""

    @property
    def active(self) -> bool:
        """Not recovered so far."""
        return self.recovered_at is None

    def as_of(self, step: int) -> "Episode":
        """The episode as it stood at ``step``, in hindsight: from its onset on it was there."""
        over = self.recovered_at is not None and self.recovered_at <= step
        return replace(
            self,
            last=min(self.last, step),
            recovered_at=self.recovered_at if over else None,
        )


@dataclass(frozen=True, slots=True)
class Finding:
    """The same trouble in one or more routers, as a person reads it. Worst router first."""

    episodes: tuple[Episode, ...]

    @property
    def worst(self) -> Episode:
        """The episode that the numbers of the text are taken from."""
        return self.episodes[0]

    @property
    def rule(self) -> str:
        """Name of the rule."""
        return self.worst.rule

    @property
    def severity(self) -> Severity:
        """The worst severity of all routers."""
        return max(episode.severity for episode in self.episodes)

    @property
    def onset(self) -> int:
        """The earliest onset."""
        return min(episode.onset for episode in self.episodes)

    @property
    def last(self) -> int:
        """The latest step with evidence."""
        return max(episode.last for episode in self.episodes)

    @property
    def active(self) -> bool:
        """At least one router has not recovered."""
        return any(episode.active for episode in self.episodes)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the routers, in forward order."""
        ordered = sorted(self.episodes, key=lambda episode: episode.router_index)
        return tuple(dict.fromkeys(episode.router.name for episode in ordered))


def group(episodes: Iterable[Episode]) -> list[Finding]:
    """Episodes of one rule whose onsets lie close together become one finding, worst first."""
    groups: list[list[Episode]] = []
    for episode in sorted(episodes, key=lambda e: (e.rule, not e.active, e.onset, e.router_index)):
        last = groups[-1][-1] if groups else None
        if (
            last is not None
            and (last.rule, last.active) == (episode.rule, episode.active)
            and episode.onset - last.onset <= GROUP_STEPS
        ):
            groups[-1].append(episode)
        else:
            groups.append([episode])
    findings = [
        Finding(tuple(sorted(members, key=lambda e: (-e.severity, e.onset, e.router_index))))
        for members in groups
    ]
    return sorted(findings, key=lambda f: (not f.active, -f.severity, _rank(f.rule), f.onset))


def _rank(rule: str) -> int:
    """Of two equally severe findings the cause stands first: a collapse also drops tokens."""
    return CAUSES_FIRST.index(rule) if rule in CAUSES_FIRST else len(CAUSES_FIRST)
