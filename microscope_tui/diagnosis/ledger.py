"""The ledger: every episode of a run, which are still open, and how an episode changes."""

from collections.abc import Iterator, Sequence

from microscope_tui.diagnosis.episodes import Episode, Grade
from microscope_tui.diagnosis.reading import EXACT, WHOLE_RUN, Fact, Facts, Reading, Severity
from microscope_tui.diagnosis.thresholds import COOLDOWN_STEPS, DEFAULTS
from microscope_tui.diagnosis.tracks import Track
from microscope_tui.runlog.records import RouterInfo

MOST_EPISODES = 20
"""Of one rule in one router; a run that flickers for years must not fill the memory."""
_MOST_GRADES = 50
_ANNOUNCED_BY = {"LOGITS": "GRADSPIKE", "COLLAPSE": "GRADSPIKE"}
_LOW_IS_BAD = ("COLLAPSE", "ERODING", "SHOCK")


class Ledger:
    """Episodes in the order of their alarms."""

    def __init__(self, routers: Sequence[RouterInfo], confidence: str = EXACT) -> None:
        """``confidence``: of the counts of this log, in words."""
        self._confidence = confidence
        self.episodes: list[Episode] = []
        self._routers = routers
        self._running: dict[tuple[str, int], Episode] = {}
        self._opened: dict[tuple[str, int], int] = {}

    def running(self, rule: str, index: int) -> Episode | None:
        """The open episode of a rule in a router."""
        return self._running.get((rule, index))

    def open(
        self,
        rule: str,
        index: int,
        step: int,
        reading: Reading,
        severity: Severity | None = None,
        track: Track | None = None,
    ) -> Episode:
        """Begin an episode, or go on with one that was over for a moment only.

        Without a ``track`` it is told at once and stands for itself: nothing will update it.
        """
        key = (rule, index)
        severity = severity or reading.severity or Severity.INFO
        onset = self._onset(rule, index, step, reading, track)
        before = self._latest(key) if track is not None else None
        if before is not None and onset <= (before.recovered_at or 0) + COOLDOWN_STEPS:
            before.recovered_at, self._running[key] = None, before
            self._worsen(before, step, severity, reading)
            before.last = step
            return before
        episode = Episode(
            rule=rule,
            router_index=index,
            router=self._routers[index] if index != WHOLE_RUN else None,
            severity=severity,
            onset=onset,
            alarm=step,
            last=step if reading.until is None else max(onset, reading.until - 1),
            value=reading.value,
            limit=reading.limit,
            facts=_plain(reading.facts),
            confidence=self._words(reading),
            recovered_at=reading.until,
            recurrence=self._opened.get(key, 0),
            grades=[Grade(step, severity, reading.value)],
        )
        self._opened[key] = self._opened.get(key, 0) + 1
        self.episodes.append(episode)
        if track is not None:
            self._running[key] = episode
        self._forget_surplus(key)
        self._announce(episode)
        return episode

    def update(
        self, episode: Episode, step: int, reading: Reading, track: Track
    ) -> Iterator[Episode]:
        """Take in one more evaluation of an open episode; yields it if it changed."""
        if reading.severity is not None:
            episode.last = step
            if _worse(reading, episode):
                episode.value, episode.facts = reading.value, _plain(reading.facts)
                episode.confidence = self._words(reading)
        severity = reading.severity if reading.certain else track.severity
        if severity is not None and severity > episode.severity:
            self._worsen(episode, step, severity, reading)
            yield episode
        elif (cleared_at := track.cleared_at) is not None:
            episode.recovered_at = cleared_at
            del self._running[episode.rule, episode.router_index]
            yield episode

    def restart(self, step: int) -> None:
        """What was said about ``step`` and later no longer holds."""
        self.episodes = [episode for episode in self.episodes if episode.onset < step]
        self._running, self._opened = {}, {}
        for episode in self.episodes:
            key = (episode.rule, episode.router_index)
            told_whole = episode.recovered_at == episode.alarm  # after the fact: it stays over
            episode.last = min(episode.last, step - 1)
            if episode.recovered_at is not None and episode.recovered_at >= step:
                # It recovered in a future that no longer is.
                episode.recovered_at = step - 1 if told_whole else None
            self._opened[key] = max(self._opened.get(key, 0), episode.recurrence + 1)
        self.resume()

    def resume(self) -> None:
        """Find out again which episodes are open."""
        for episode in self.episodes:
            key = (episode.rule, episode.router_index)
            self._opened[key] = max(self._opened.get(key, 0), episode.recurrence + 1)
            if episode.active and episode.rule != "LINT":
                self._running[key] = episode

    def _words(self, reading: Reading) -> str:
        return self._confidence if reading.confidence == EXACT else reading.confidence

    def _latest(self, key: tuple[str, int]) -> Episode | None:
        found = [e for e in self.episodes if (e.rule, e.router_index) == key]
        return found[-1] if found else None

    def _onset(
        self, rule: str, index: int, step: int, reading: Reading, track: Track | None
    ) -> int:
        known = [step, reading.since, track.since if track is not None else None]
        if rule == "COLLAPSE" and (eroding := self.running("ERODING", index)) is not None:
            known.append(eroding.onset)  # the slide began there
        return min(at for at in known if at is not None)

    def _worsen(self, episode: Episode, step: int, severity: Severity, reading: Reading) -> None:
        if severity > episode.severity:
            episode.severity, episode.limit = severity, reading.limit
        episode.grades.append(Grade(step, severity, reading.value))
        del episode.grades[1:-_MOST_GRADES]

    def _announce(self, episode: Episode) -> None:
        """A gradient spike that a divergence follows was its first sign."""
        first_sign = self.running(_ANNOUNCED_BY.get(episode.rule, ""), WHOLE_RUN)
        if first_sign is None or episode.severity < Severity.WARN:
            return
        soon = episode.alarm - first_sign.last <= DEFAULTS.GRADSPIKE.followed
        if soon and first_sign.severity < Severity.CRITICAL:
            first_sign.severity = Severity.CRITICAL
            first_sign.grades.append(Grade(episode.alarm, Severity.CRITICAL, first_sign.value))

    def _forget_surplus(self, key: tuple[str, int]) -> None:
        same = [e for e in self.episodes if (e.rule, e.router_index) == key]
        if len(same) > MOST_EPISODES:
            least = min(same[:-1], key=lambda e: (e.active, e.severity, e.onset))
            self.episodes = [e for e in self.episodes if e is not least]


def _worse(reading: Reading, episode: Episode) -> bool:
    """Low is bad for an index with a lower limit, high is bad for a rate or a number."""
    if episode.rule in _LOW_IS_BAD:
        return reading.value <= episode.value
    return reading.value >= episode.value


def _plain(facts: Facts) -> dict[str, Fact]:
    """Numbers as floats, so that a saved judgement is the same when it is read again."""
    return {k: float(v) if isinstance(v, int) else v for k, v in facts.items()}
