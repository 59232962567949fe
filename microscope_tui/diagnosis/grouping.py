"""Groups episodes: the same trouble in several routers is one finding; most important first."""

from collections.abc import Iterable, Sequence

from microscope_tui.diagnosis.catalogue import RULES
from microscope_tui.diagnosis.episodes import Episode, Finding
from microscope_tui.diagnosis.timing import GROUP_STEPS


def group(episodes: Iterable[Episode]) -> list[Finding]:
    """Episodes of one rule whose onsets lie close together become one finding, worst first."""
    groups: list[list[Episode]] = []
    for episode in sorted(episodes, key=lambda e: (e.rule, not e.active, e.onset, e.router_index)):
        if groups and _belongs(episode, groups[-1]):
            groups[-1].append(episode)
        else:
            groups.append([episode])
    findings = [
        Finding(tuple(sorted(members, key=lambda e: (-e.severity, e.onset, e.router_index))))
        for members in groups
    ]
    return sorted(
        findings, key=lambda f: (not f.active, -f.severity, RULES[f.rule].cause_rank, f.onset)
    )


def _belongs(episode: Episode, members: Sequence[Episode]) -> bool:
    first = members[0]  # not the last one: chains of onsets could grow without end
    return (
        (first.rule, first.active) == (episode.rule, episode.active)
        and first.facts.get("cause") == episode.facts.get("cause")
        and episode.onset - first.onset <= GROUP_STEPS
        and episode.router is not None
    )
