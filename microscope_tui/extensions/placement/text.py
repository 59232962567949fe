"""The page "placement": the ranks of a layer and their experts, and ageing.

The busiest rank comes first, and in it its busiest expert: an uneven layer is a slope.
"""

import math
from collections.abc import Sequence

from microscope_tui.diagnosis import Advice, Finding, Severity
from microscope_tui.draw.glyphs import HOT_LEVEL, bar, load_glyph, load_mark, shade_level
from microscope_tui.draw.heat import Heat, heat_lines, legend, role_of_level
from microscope_tui.draw.spans import Line, Span, dim, in_turn, merged, pad, with_notes
from microscope_tui.extensions.placement.report import ageing
from microscope_tui.extensions.placement.study import Scored, Study
from microscope_tui.runlog import RouterInfo
from microscope_tui.watch.cluster import rank_loads

_WIDEST, _AIRY_FROM, _LATE = 7, 22, 1.1
_STEPS = "fitted to steps {:,} to {:,}, scored on {:,} to {:,}"


def repair_first(alerts: Sequence[tuple[Finding, Advice]]) -> str:
    """The worst of these that will change the loads: a collapse or a critical one; empty if none
    will."""
    for finding, _ in alerts:
        if finding.rule == "COLLAPSE" or finding.severity > Severity.WARN:
            return f"{finding.rule} in {', '.join(finding.layers[:2]) or 'the run'}"
    return ""


def placement_lines(
    study: Study, router: RouterInfo, size: tuple[int, int], heat: Heat, fault: str = ""
) -> list[Line]:
    """The verdict for all layers, and the ranks of one; ``fault``: what to repair first."""
    columns, rows = size
    ranks = study.request.ranks
    gain = study.gain
    due = study.interval
    title = in_turn("  ", router.name, f"   {router.num_experts:,} experts on {ranks:,} ranks")
    word = Span(f"  does not pay: {study.reason}", "warn") if study.reason else Span("  pays", "ok")
    if fault:
        word = Span(f"  repair first: {fault}; its loads will change", "warn")
    refit = "" if due is None else f"   refit after {due:,.0f} steps"
    refit = "   does not age in this run" if due == math.inf else refit
    sure = "" if gain.low is None else f" (95 % {gain.low:+.3f} to {gain.high:+.3f})"
    scores = f"{study.today.held_out:.3f} to {study.chosen.held_out:.3f}"
    gained = "  gain ", f"{gain.mean:+.3f}", f"{sure}, balancedness ", scores, " in all layers"
    lines = [
        with_notes(title, [_STEPS.format(*study.fit[:2], *study.score[:2])], columns),
        with_notes([word, Span(refit)], ["copies, files: moe-microscope placement"], columns),
        with_notes(in_turn(*gained), [f"{study.moves.copies:,} experts move"], columns),
    ]
    lines += [pad([dim(f"  note: {note}")], columns) for note in study.counts.notes]
    if router not in (routers := [layer.router for layer in study.counts.layers]):
        return [*lines, [dim("  no counts in this layer")]]
    gap: list[Line] = [[]] if rows >= _AIRY_FROM else []
    aged = [pad([dim(f"  {text}")], columns) for text in ageing(study)]
    least = len(lines) + 3 + 2 * len(gap) + len(aged)
    layer, fits = routers.index(router), max(1, rows - least)
    ways = (study.today, study.chosen)
    width = (columns - 2) // 2
    left, right = (_side(study, way, layer, (width, fits), heat) for way in ways)
    both = [[*pad(a, columns - width), *pad(b, width)] for a, b in zip(left, right, strict=True)]
    more = f"  {ranks - fits:,} less busy ranks are not shown" if ranks > fits else ""
    scale = legend(heat, columns - len(more) - 2)
    return [*lines, *gap, *both, [dim(f"{more}  "), *scale], *gap, *aged]


def _side(study: Study, way: Scored, layer: int, size: tuple[int, int], heat: Heat) -> list[Line]:
    (width, rows), loads, held = size, study.loads[layer], way.placements[layer]
    today, ranks = (rank_loads(loads, one.placements[layer]) for one in (study.today, way))
    mean, long = sum(ranks) / len(ranks) or 1.0, max(4, width // 7)
    fair, top = sum(loads) / len(loads) or 1.0, max(today) or 1.0
    what = "today   " if way is study.today else "after   "
    value = way.layers[layer] or 1.0
    lines = [in_turn(f"  {what}", f"{value:.3f}", f" balancedness   {way.name}")]
    lines.append([dim(f"  rank  load{'':{long}}    experts")])
    for rank in sorted(range(len(held)), key=lambda rank: -ranks[rank])[:rows]:
        experts = sorted(held[rank], key=lambda expert: -loads[expert])
        late = "warn" if ranks[rank] > _LATE * mean else "curve"
        head = in_turn(f"{rank:>6,}", f"{ranks[rank] / mean:>6.2f}  ")
        drawn = Span(bar(ranks[rank] / top, long, heat.glyphs) + "  ", late)
        ratios = [loads[expert] / fair for expert in experts]
        cells = _cells(experts, ratios, len(f"{len(loads) - 1}"), width - long - 16, heat)
        lines.append([*head, drawn, *cells])
    return lines


def _cells(
    experts: Sequence[int], ratios: Sequence[float], digits: int, room: int, heat: Heat
) -> Line:
    wide = min(_WIDEST, room // len(experts))
    if wide <= digits:
        return heat_lines((), ratios, heat, room, max(1, wide))[0]
    cells = []
    for expert, level in zip(experts, map(shade_level, ratios), strict=True):
        role = role_of_level(level)
        if level is not None and level < HOT_LEVEL:  # light ink on a dark cell
            role = role.replace("heat", "num")
        mark = load_mark(level) if heat.colour else load_glyph(level)
        cells.append((f"{expert:>{digits}}{mark}".center(wide), role if heat.colour else "value"))
    return merged(cells)
