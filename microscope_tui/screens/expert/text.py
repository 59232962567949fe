"""One expert of one layer as lines."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from microscope_tui import measures
from microscope_tui.diagnosis import Episode, Finding
from microscope_tui.diagnosis.rules.base import ids_of
from microscope_tui.draw import words
from microscope_tui.draw.charts import Chart, Curve
from microscope_tui.draw.glyphs import HOT_LEVEL, load_level
from microscope_tui.draw.spans import Line, Span, dim, in_turn, pad, role_of, spread
from microscope_tui.watch import Column, LayerView, RunView, Sample
from microscope_tui.watch.history import NAN

_ROLES = {"dead": "crit", "starving": "warn", "hot": "warn", "under": "value", "over": "value"}


class LoadSeries:
    """All experts of one router over sampled steps."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        known = [(s, load) for s in samples if (load := measures.load(s.counts)) is not None]
        self.steps = [sample.step for sample, _ in known]
        self.loads = [load for _, load in known]
        """Multiples of the fair share, by step."""
        self.biases = [sample.bias for sample, _ in known]


def most_remarkable(load: Sequence[float]) -> int:
    """The first of the experts farthest from their fair share."""
    levels = [load_level(x) for x in load]
    if None in levels:  # without a token: farther away than any other
        return levels.index(None)
    away = [abs(level or 0) for level in levels]
    return away.index(max(away, default=0)) if away else 0


def first_expert(view: RunView, layer: LayerView) -> int:
    """The busiest that an alert names, or of a layer with an alert; else the most remarkable."""
    load = layer.load or ()
    own = [e for f, _ in view.alerts for e in f.episodes if e.router_index == layer.index]
    if not load or not own:
        return most_remarkable(load)
    named = [
        expert for episode in own for expert in ids_of(episode, "experts") if expert < len(load)
    ]
    return max(named or range(len(load)), key=load.__getitem__)


def condition(load: float) -> str:
    """``dead``, ``starving``, ``under``, ``fair``, ``over`` or ``hot``, of a multiple of the fair
    share.
    """
    if not load > 0:
        return "dead"
    if load < measures.STARVED_SHARE:
        return "starving"
    level = load_level(load) or 0
    if level == 0:
        return "fair"
    if level < 0:
        return "under"
    return "over" if level < HOT_LEVEL else "hot"


def place_of(values: Sequence[float], expert: int) -> int:
    """1 for the busiest; ties share the better place, but dead experts are last."""
    own = values[expert]
    return 1 + sum(value > own for value in values) if own > 0 else len(values)


def findings_of(view: RunView, layer: LayerView, expert: int) -> Iterable[tuple[Finding, Episode]]:
    """Findings that name the expert, with the episode of this layer; active and recovered."""
    for finding, _ in view.findings:
        for episode in finding.episodes:
            if episode.router_index == layer.index and expert in ids_of(episode, "experts"):
                yield finding, episode


def title(layer: LayerView, expert: int, moment: str, width: int) -> Line:
    """The expert and its layer; ``moment`` at the right end."""
    router, size = layer.router, layer.router.num_experts or "?"
    left = [
        Span(f"  expert {expert}", "title"),
        dim(f"  of {size} in {router.name}, {words.choices(router.top_k)}"),
    ]
    return spread(left, [Span(moment, "accent")], width)


def facts(view: RunView, layer: LayerView, expert: int, width: int) -> list[Line]:
    """Load, place and bias at the shown step, in two lines."""
    load, bias = layer.load, layer.bias
    if not load or not layer.counts or expert >= len(load):
        return [pad([dim(f"  {words.no_counts(view)}")], width), pad([], width)]
    what = condition(load[expert])
    share, of_all = words.part_of(view, layer, expert)
    rest = f" of {len(load)}   "
    first = in_turn("  load ", words.decimal(load[expert]), " × the fair share   ", role="title")
    first.append(Span(what, _ROLES.get(what, "ok")))
    second = in_turn("  place ", f"{place_of(load, expert)}", rest, f"{share:.1%}", f" {of_all}")
    if bias and expert < len(bias):
        away = bias[expert] - sum(bias) / len(bias)
        second += in_turn("   bias ", words.signed(bias[expert]))
        if math.isfinite(away):
            second.append(dim(f", {away:+.2g} from the mean"))
    if view.counts_step is not None and view.counts_step != view.step:
        first.append(dim(f"   counted at step {view.counts_step:,}"))
    return [pad(first, width), pad(second, width)]


def expert_charts(
    layer: LayerView, expert: int, series: LoadSeries, nothing: str
) -> Mapping[str, Chart]:
    """``nothing``: the text of a chart without samples."""
    steps = series.steps
    load = layer.load if layer.load and expert < len(layer.load) else None
    bias = layer.bias if layer.bias and expert < len(layer.bias) else None

    def curves(values: Iterable[float]) -> Sequence[Curve]:
        return [Curve(steps, [Column(value, value, value) for value in values])]

    def bias_of(one: Sequence[float] | None) -> float:
        return NAN if one is None else one[expert]

    loads = curves(one[expert] for one in series.loads)
    biases = curves(bias_of(one) for one in series.biases)
    now = load[expert] if load else None
    note = f"1 is fair   {len(steps)} steps sampled" if steps else "1 is fair"
    charts = {"load": Chart("load", loads, now, note, limits=[(1.0, "dim")])}
    if bias:
        charts["bias"] = Chart("bias", biases, bias[expert], bottom=None, spell=words.signed)
    return {name: replace(chart, nothing=nothing) for name, chart in charts.items()}


def findings_line(view: RunView, layer: LayerView, expert: int, width: int) -> Line:
    """The findings that name the expert, else the alerts of its layer."""
    line = [dim("  findings    ")]
    named = list(findings_of(view, layer, expert))
    for finding, episode in named:
        over = f" to {episode.recovered_at:,}" if episode.recovered_at is not None else ""
        line += [Span(finding.rule, role_of(episode)), Span(f" since {episode.onset:,}{over}")]
        line.append(dim("   "))
    rules = [
        finding.rule
        for finding, _ in view.alerts
        if any(e.router_index == layer.index and e.active for e in finding.episodes)
    ]
    others = [rule for rule in rules if rule not in {finding.rule for finding, _ in named}]
    if others:
        line.append(dim(f"{layer.router.name} has {words.listed(others)}"))
    elif not named:
        line.append(dim("none names it"))
    return pad(line, width)
