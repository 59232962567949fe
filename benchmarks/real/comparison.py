"""The diagnosis of a run beside the truth about it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.real.arrays import (
    WHOLE_RUN,
    ArrayLog,
    Stretch,
    Stretches,
    Zone,
    collapse_index,
    summed,
)
from benchmarks.real.oracle import COMES_WITH, RULES, WINDOW, eroded
from microscope_tui.diagnosis import Episode, Severity, report
from microscope_tui.runlog import find_runs
from microscope_tui.watch import RunWatch

TOLERANCE_STEPS = 40
"""An alarm may come so much before or after the stretch it is about: windows begin differently."""

START_STEPS = 300
"""A warning that healed by then is information."""

UNEXPLAINED_STEPS = 75
"""What comes with a collapse need not be reported until it has outlasted it for so long."""


@dataclass(slots=True)
class Comparison:
    """One run: what is true, what was found, and where they differ."""

    log: ArrayLog
    truth: dict[str, dict[Zone, Stretches]]
    episodes: list[Episode]
    """At the severity of a warning or above."""
    notes: list[Episode]
    """Below that."""
    causes: dict[str, str] = field(default_factory=dict)
    """What explains the findings that are active at the end → its remedy; worst first."""
    missed: list[str] = field(default_factory=list)
    false: list[str] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        """Nothing certain was missed, nothing was found that is not even possible."""
        return not self.missed and not self.false

    @property
    def lowest_collapse_index(self) -> list[float]:
        """Of 25 steps together, after the warm-up, per layer."""
        c_SL = collapse_index(summed(self.log.counts_SLE, WINDOW), self.log.top_k)
        judged_SL = c_SL[self.log.judged_S]
        return [float(c) for c in (judged_SL if len(judged_SL) else c_SL).min(0)]


def compare(path: Path) -> Comparison:
    """Judge the log at ``path`` twice."""
    log = ArrayLog(path)
    watch = RunWatch(find_runs(path)[0], patient=True)
    watch.read_all()
    everything = watch.diagnosis.episodes if watch.diagnosis is not None else []
    episodes = [episode for episode in everything if episode.severity >= Severity.WARN]
    truth = {name: {zone: rule(log, zone) for zone in Zone} for name, rule in RULES.items()}
    found = Comparison(log, truth, episodes, [e for e in everything if e not in episodes])
    for finding, advice in report(watch.diagnosis) if watch.diagnosis is not None else ():
        if finding.active and finding.severity >= Severity.WARN:
            found.causes.setdefault(advice.cause, advice.next)
    found.missed = list(_missed(found))
    found.false = [
        f"{episode.rule} {place(episode)} {outcome} (alarm {episode.alarm})"
        for episode in episodes
        if (outcome := _refuted(found, episode))
    ]
    return found


def place(episode: Episode) -> str:
    """The layer, or what stands for one."""
    if episode.rule == "LINT":
        return str(episode.facts["cause"])
    return episode.router.name if episode.router is not None else WHOLE_RUN


def _missed(found: Comparison) -> Iterator[str]:
    """What is certain and was not reported, nor its cause, nor a fault of the meter."""
    broken = [stretch for every in found.truth["METER"].values() for stretch in _all(every)]
    for rule, zones in found.truth.items():
        for layer, stretches in zones[Zone.CERTAIN].items():
            for stretch in _merged(stretches):
                if rule != "METER" and any(b.onset <= stretch.known for b in broken):
                    continue
                said = _episodes(found, (rule,), layer) + _healed(found, rule, layer)
                causes = _episodes(found, COMES_WITH.get(rule, ()), layer)
                if not any(_meet(e, stretch) for e in said) and not _explained(causes, stretch):
                    yield f"{rule} {layer} {written(stretch)}"


def _episodes(found: Comparison, rules: tuple[str, ...], layer: str) -> list[Episode]:
    if "METER" in rules:  # a fault of the measurement is the run's or a layer's, as one sees it
        return [e for e in found.episodes if e.rule == "METER"]
    return [e for e in found.episodes if e.rule in rules and place(e) == layer]


def _healed(found: Comparison, rule: str, layer: str) -> list[Episode]:
    """What was a warning of the start until it healed."""
    ended = [e for e in found.notes if (e.recovered_at or math.inf) <= START_STEPS]
    return [e for e in ended if e.rule == rule and place(e) == layer]


def _meet(episode: Episode, stretch: Stretch) -> bool:
    """The episode speaks of some of the stretch."""
    return episode.onset <= stretch.last and _end(episode) >= stretch.onset


def _explained(causes: list[Episode], stretch: Stretch) -> bool:
    """No long part of the stretch is without a cause."""
    causes = sorted((e for e in causes if _meet(e, stretch)), key=lambda e: e.onset)
    if not causes:
        return False
    reached, longest = float(stretch.known), 0.0
    for episode in causes:
        longest = max(longest, episode.onset - reached)
        reached = max(reached, _end(episode))
    return max(longest, stretch.last - reached) <= UNEXPLAINED_STEPS


def _end(episode: Episode) -> float:
    return math.inf if episode.recovered_at is None else episode.recovered_at


def _refuted(found: Comparison, episode: Episode) -> str:
    """Why the episode is wrong, even in the grey zone; empty where it is not."""
    layer, rule = place(episode), episode.rule
    if rule == "ERODING":
        return "did not come" if eroded(found.log, layer, episode.alarm) == "no" else ""
    if rule not in found.truth:
        return "has no truth to be held against"
    possible = found.truth[rule][Zone.POSSIBLE]
    stretches = possible.get(layer, [])
    if rule == "METER":
        stretches = _all(possible)
    near = (
        stretch.onset - TOLERANCE_STEPS <= episode.alarm <= stretch.last + TOLERANCE_STEPS
        for stretch in stretches
    )
    return "" if any(near) else "is not there"


def _all(stretches: Stretches) -> list[Stretch]:
    return [stretch for every in stretches.values() for stretch in every]


def written(stretch: Stretch) -> str:
    """``31-600``"""
    return f"{stretch.onset}-{stretch.last}"


def true_words(found: Comparison) -> Iterator[str]:
    """What brute force finds, a line a rule; ``~`` where it is close to a limit."""
    for rule, zones in found.truth.items():
        said = []
        for layer in zones[Zone.POSSIBLE]:
            nominal = zones[Zone.NOMINAL].get(layer, [])
            certain = layer in zones[Zone.CERTAIN]
            stretches = nominal or zones[Zone.POSSIBLE][layer]
            mark = "" if certain else "~" if nominal else "(~)"
            spans = ", ".join(written(stretch) for stretch in _merged(stretches)[:4])
            said.append(f"{mark}{layer} {spans} (known {min(s.known for s in stretches)})")
        if said:
            words = [text.split(" (known")[0] for text in said] if rule == "LINT" else said
            yield f"{rule} {'; '.join(words)}"


def _merged(stretches: list[Stretch]) -> list[Stretch]:
    """In order, those that meet as one."""
    merged: list[Stretch] = []
    for stretch in sorted(stretches, key=lambda s: s.onset):
        if merged and stretch.onset <= merged[-1].last + 1:
            before = merged.pop()
            known, last = min(before.known, stretch.known), max(before.last, stretch.last)
            stretch = Stretch(before.onset, known, last)
        merged.append(stretch)
    return merged


def found_words(found: Comparison) -> Iterator[str]:
    """What the diagnosis finds, a line a rule."""
    for rule in dict.fromkeys(episode.rule for episode in found.episodes):
        said = []
        for episode in (e for e in found.episodes if e.rule == rule):
            end = "" if episode.active else f"-{episode.recovered_at}"
            came = ""
            if rule == "ERODING":
                came = f", came: {eroded(found.log, place(episode), episode.alarm)}"
            said.append(
                f"{place(episode)} {episode.severity.label} {episode.onset}{end} "
                f"(alarm {episode.alarm}{came})"
            )
        yield f"{rule} {'; '.join(said)}"
