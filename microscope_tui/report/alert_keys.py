"""The name of an alert, by which a sitting remembers that somebody has seen it."""

from microscope_tui.diagnosis.episodes import Finding


def key_of(run: str, finding: Finding) -> str:
    """The same for the same trouble of the same run, also when more layers join it."""
    worst = min(finding.episodes, key=lambda episode: (episode.onset, episode.router_index))
    return f"{run} {finding.rule} {worst.router_index} {worst.onset}"
