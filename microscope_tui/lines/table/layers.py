"""Which layers a filter shows, and one expert of a layer in words."""

from collections.abc import Sequence

from microscope_tui.lines import missing, words
from microscope_tui.lines.pattern import Pattern
from microscope_tui.lines.spans import WORD_OF_SEVERITY
from microscope_tui.lines.table.heat import Terms
from microscope_tui.watch import RunView


def matching(view: RunView, pattern: Pattern) -> Sequence[int]:
    """Indices of the layers whose name or alert matches."""
    if not pattern.text:
        return range(len(view.layers))
    troubles: dict[int, list[str]] = {}  # names and severities, as the alerts screen has them
    for finding, _ in view.findings:
        for episode in finding.episodes:
            if episode.active:
                said = troubles.setdefault(episode.router_index, [])
                said += [finding.rule, WORD_OF_SEVERITY[episode.severity]]
    return [
        layer.index
        for layer in view.layers
        if pattern.matches(" ".join([layer.router.name, *troubles.get(layer.index, ("healthy",))]))
    ]


def expert_line(view: RunView, layer_index: int, expert: int | None, terms: Terms) -> str:
    """The exact values of one expert, for the line under the ribbon; empty where none is chosen."""
    if expert is None or layer_index >= len(view.layers):
        return ""
    layer = view.layers[layer_index]
    name = f"{layer.router.name} expert {expert}"
    if not layer.load or not layer.counts or expert >= len(layer.load):
        return f"{name}: {missing.no_counts(view)}"
    kind = view.run.counts if view.run is not None else ""
    whole, of_all = words.all_of(layer.counts, layer.router.top_k, kind)
    count = layer.counts[expert]
    part = f"{count / max(1.0, whole):.1%}" if kind == "shares" else f"{count:,}"
    parts = [
        f"{name}: load {layer.load[expert]:.3g}",
        f"{part} {of_all}",
    ]
    if layer.bias and expert < len(layer.bias):
        parts.append(f"bias {layer.bias[expert]:+.4g}")
    then = terms.reference.load_of(layer_index, len(layer.load)) if terms.reference else None
    if then is not None and terms.reference is not None:
        parts.append(f"load {then[expert]:.3g} at step {terms.reference.step:,}")
    return ", ".join(parts)
