"""The lines above every screen of a run: the header, and the verdict."""

from collections.abc import Container, Sequence

from microscope_tui.diagnosis import (
    NO_ROUTERS,
    Advice,
    Finding,
    Severity,
    gathering,
    is_one_step,
    key_of,
)
from microscope_tui.diagnosis.rules.collapse import CollapseLimits
from microscope_tui.draw import words
from microscope_tui.draw.glyphs import Glyphs
from microscope_tui.draw.spans import (
    ROLE_OF_SEVERITY,
    Line,
    Span,
    crop,
    dim,
    faded,
    labelled,
    line_width,
    merged,
    pad,
    shortened,
    spread,
    width_of,
    wrap,
)
from microscope_tui.runlog import plural
from microscope_tui.watch import RunState, RunView

STATE_ROLES = {
    **dict.fromkeys((RunState.LIVE, RunState.FINISHED), "ok"),
    **dict.fromkeys((RunState.SLOW, RunState.STALE, RunState.STOPPED), "warn"),
    **dict.fromkeys((RunState.CRASHED, RunState.FAILED, RunState.DELETED), "crit"),
}
MIN_COLUMNS, MIN_ROWS = 40, 10
"""The smallest window that has a table."""
_LEAST_NAME = 12
_WIDE, _PROGRESS = 110, 16
_PARTS = 4
_LEAST_OTHERS = 28
"""Cells from which other runs are named in the header."""
_HEAD = 10
"""Cells before the words of a verdict: the edge, and what they are."""
_BADGE, _BESIDE = 15, 36
"""Cells of the badge beside a title, and with the number of alerts."""
_BADGES = dict(zip(Severity, ("NOTE", "WARNING", "CRITICAL", "METER"), strict=True))


def header(
    view: RunView, width: int, glyphs: Glyphs, *, brand: bool = True, others: Sequence[str] = ()
) -> Line:
    """A long name is cut first. ``others``: critical runs; they replace the speed."""
    gap = Span("   " if width >= 72 else "  ")
    left: Line = []
    if brand and width >= _WIDE:
        left = [Span("MoE Microscope", "brand"), gap]
    right = _critical(others, width // 2 - 2)
    room, rest = 0, list[Span]()
    for parts in range(_PARTS, -1, -1):
        rest = _after_name(view, width, gap, glyphs, parts)
        room = width - line_width([*rest, *right]) - (4 if right else 2)
        if room >= min(_LEAST_NAME, width_of(view.name)):
            break
    if room < line_width(left) + width_of(view.name):  # the run's name matters more than ours
        left = []
    name = shortened(view.name, max(4, room - line_width(left)))
    left = [Span(" "), *left, Span(name, "title"), *rest]
    if not others and view.record is not None and view.record.tokens_per_s:
        right = [dim(f"{words.short_number(view.record.tokens_per_s)} tok/s")]
    return spread(left, [*right, Span(" ")], width)


def _critical(others: Sequence[str], room: int) -> Line:
    """``1 other run CRITICAL: name``, or less."""
    if not others:
        return []
    if room < _LEAST_OTHERS:
        return [Span(f"{len(others)} other CRIT", "crit")]
    text = f"{plural(len(others), 'other run')} CRITICAL: "
    return [Span(text + shortened(", ".join(others), room - len(text)), "crit")]


def _after_name(view: RunView, width: int, gap: Span, glyphs: Glyphs, parts: int) -> Line:
    """With more ``parts``: the step, the loss, the plan, a remark on the state."""
    line = [gap, *_state(view, remark=parts == _PARTS), gap]
    run = view.run
    if not parts:
        return line[:-1]
    loss = []
    if parts > 1:
        loss = [gap, dim("loss "), Span(_loss(view))]
    if run is not None and is_one_step(run):
        return [*line, Span("evaluation"), *loss]
    if run is not None and "force_collapse" in run.balance:
        line += [Span("forced", "warn"), gap]
    evaluates = run is not None and run.profile == "eval"
    line += [dim("evaluation, part " if evaluates else "step "), Span(f"{view.step:,}")]
    if parts > 2 and run is not None and run.planned_steps:
        line += _planned(view.step, run.planned_steps, width, glyphs)
    if run is not None and run.unconfirmed:
        line += [gap, Span("m: confirm keys", "warn")]
    return [*line, *loss]


def _state(view: RunView, *, remark: bool) -> Line:
    state, word, more = view.life
    role, age = STATE_ROLES.get(state, "dim"), words.age(view.age_s)
    text = f"{word} {age}".rstrip()
    if age and state.ended and state != RunState.CRASHED:
        text += " ago"
    if more and remark:
        text += f" ({more})"
    return [Span("● ", role), Span(text, role)]


def _planned(step: int, steps: int, width: int, glyphs: Glyphs) -> Line:
    line = [dim(f" / {steps:,}")]
    if width >= _WIDE:
        done = round(max(0.0, min(1.0, step / steps)) * _PROGRESS)
        full, rest = ("=", "-") if glyphs is Glyphs.ASCII else ("━", "━")
        line += [Span(" "), Span(full * done, "accent"), Span(rest * (_PROGRESS - done), "faint")]
    return line


def _loss(view: RunView) -> str:
    return words.decimal(view.record.loss if view.record else None) or "-"


def verdict(
    view: RunView,
    width: int,
    lines: int,
    seen: Container[str] = frozenset(),
    *,
    compact: bool = False,
) -> list[Line]:
    """The worst alert that is not ``seen``; ``compact``: without the why."""
    unseen = _unseen(view, seen)
    worst = unseen[0] if unseen else view.worst
    rows: list[Line]
    if view.log.error:
        rows = [[Span(" "), Span(view.log.error, "crit")]]
    elif worst is None:
        rows = [[Span(" "), *_without_alert(view)]]
    else:
        finding, advice = worst
        role = "dim" if view.life.outdated else ROLE_OF_SEVERITY[finding.severity]
        of_badge = "dim" if role == "dim" else f"badge-{role}"
        badge = Span(f" {_BADGES[finding.severity]} ", of_badge)
        more = _beside_badge(view, len(unseen))
        if compact or lines < 3:
            text = Span(f" {advice.cause_first(advice.short)}")
            first = crop([Span(" "), badge, text], width - line_width(more) - 1)
            following = labelled("next", _cut(advice.next, width - 7, lines - 1), 7)
            rows = [spread(first, more, width), *following]
        else:
            rows = _in_full(_texts(view, advice, width), lines, width)
            rows[0] = spread([Span(" "), badge, *rows[0]], more, width - 2)
            rows = [[Span(" "), Span("▌", role), *line] for line in rows]
    rows += [[]] * (lines - len(rows))
    return [pad(row, width) for row in rows]


def _beside_badge(view: RunView, unseen: int) -> Line:
    """How many alerts there are, how many of them are seen, and what is still being judged."""
    active = len(view.alerts)
    texts = []
    if active > 1:
        texts.append(f"1 of {active} alerts")
    if unseen < active:
        texts.append(f"{active - unseen} seen" if unseen else "seen")
    if view.log.busy:
        texts.append(view.log.busy)
    return [dim(f"{'  '.join(texts)} ")] if texts else []


def _in_full(texts: tuple[list[str], ...], lines: int, width: int) -> list[Line]:
    title, why, following = texts
    if lines < len(title) + len(why) + len(following):
        title = [" ".join(title)]
    last = min(lines - 1 - len(title), len(following))
    why = _cut(" ".join(why), width - _HEAD, lines - len(title) - last)
    following = _cut(" ".join(following), width - _HEAD, last)
    rows = labelled("", title[1:], _HEAD - 2, "title") + labelled("why", why, _HEAD - 2)
    return [[Span(f" {title[0]}", "title")], *rows, *labelled("next", following, _HEAD - 2)]


def _unseen(view: RunView, seen: Container[str]) -> list[tuple[Finding, Advice]]:
    return [pair for pair in view.alerts if key_of(view.name, pair[0]) not in seen]


def verdict_heights(view: RunView, width: int, seen: Container[str] = ()) -> list[int]:
    """Lines of the whole verdict: without the why, and in full."""
    if view.worst is None or view.log.error:
        return []
    _, advice = (_unseen(view, seen) or [view.worst])[0]
    heights = []
    if _BADGE + width_of(advice.cause_first(advice.short)) < width:
        heights.append(1 + len(wrap(advice.next, width - 7)))
    return [*heights, sum(map(len, _texts(view, advice, width)))]


def _texts(view: RunView, advice: Advice, width: int) -> tuple[list[str], list[str], list[str]]:
    beside = _BESIDE if len(view.alerts) > 1 else _BADGE
    title = wrap(advice.cause_first(advice.verdict), width - beside)
    return title, wrap(advice.why, width - _HEAD), wrap(advice.next, width - _HEAD)


def _cut(text: str, width: int, lines: int) -> list[str]:
    """``text`` in at most ``lines`` lines, cut between words: half a number would be wrong."""
    rows = wrap(text, width)
    if len(rows) > lines:
        rows = [*rows[: lines - 1], *wrap(" ".join(rows[lines - 1 :]), width - 2)]
        rows[lines - 1] += " …"
    return rows[:lines]


def _without_alert(view: RunView) -> Line:
    line = _all_well(view)
    if view.log.busy:
        line.append(dim(f"; {view.log.busy}"))
    return list(map(faded, line)) if view.life.outdated else line


def _all_well(view: RunView) -> Line:
    if not view.layers:
        return [Span(NO_ROUTERS), dim("   6 every number of the log")]
    balances = [
        (c, layer.router.name) for layer in view.layers if (c := layer.judged_balance) is not None
    ]
    if view.judging.share < 1.0:
        return _not_judged_yet(view, balances)
    line = _no_alert(view, f", lowest {_lowest(balances)}" if balances else "")
    text = f"; note: {view.notes[0][1].short.split(':')[0]}" if view.notes else ""
    if over := sum(not f.active and f.severity > Severity.INFO for f, _ in view.findings):
        text += f"; {plural(over, 'earlier alert')}, recovered"
    return merged(span for span in [*line, dim(text)] if span.text)


def _no_alert(view: RunView, lowest: str) -> Line:
    evidence = gathering(view.judging.pending, [layer.judged_balance for layer in view.layers])
    if view.judging.no_verdict:
        text = view.judging.no_verdict + (", " if evidence else lowest)
        return [dim(text), Span(evidence, "warn")]
    pending = {found.router_index for found in view.judging.pending}
    well = sum(layer.index not in pending for layer in view.layers)
    if not evidence:
        return [Span(f"{plural(well, 'layer')} healthy", "ok"), dim(lowest)]
    noun = "other layer" if well < len(view.layers) else "layer"
    rest = f"; {plural(well, noun)} healthy" if well else ""
    return [Span(evidence, "warn"), dim(rest)]


def _not_judged_yet(view: RunView, balances: Sequence[tuple[float, str]]) -> Line:
    reading = f"diagnosis at step {view.judging.last_step:,} ({view.judging.share:.0%})"
    if view.state is RunState.DELETED:
        reading = f"deleted when {view.judging.share:.0%} was judged"
    elif view.log.progress < 1.0:
        reading = f"scanning the log ({view.log.progress:.0%})"
    low = [pair for pair in balances if pair[0] < CollapseLimits().warn]
    if not low:
        return [dim(f"nothing found so far, {reading}")]
    more = f" and {len(low) - 1} more" if len(low) > 1 else ""
    return [Span(f"{_lowest(low)}{more} now", "warn"), dim(f"; no verdict: {reading}")]


def _lowest(balances: Sequence[tuple[float, str]]) -> str:
    c, name = min(balances, key=lambda pair: pair[0])
    return f"balance {words.index(c)} in {name}"


def smallest(view: RunView, columns: int, rows: int) -> list[Line]:
    """For a window too small for a table: the required size, and how the run is."""
    needed = dim(f"needs {MIN_COLUMNS}x{MIN_ROWS}, has {columns}x{rows}")
    lines = [[needed], *verdict(view, columns, 2)]
    return [pad(line, columns) for line in lines[:rows]]
