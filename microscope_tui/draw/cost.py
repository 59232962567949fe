"""What uneven load costs on several ranks, in words that keep the regimes apart."""

import re

from microscope_tui.draw.spans import Line, Span, crop, first_fitting, in_turn, joined, pad, wrap
from microscope_tui.watch.cost import Cost, Reads, Uneven

_NUMBERS = re.compile(r"(\d[\d.,]*%?)")
_COUNTS = {"shares": "by shares", "top1": "first choices only", "local_rank": "tokens of one rank"}


def layer_cost(cost: Cost, index: int, columns: int, most: int) -> list[Line]:
    """Training and prefill on the first line, decode on the second."""
    label, one = f"  {cost.ranks} ranks  ", cost.layers[index]
    texts = [["no counts here of experts that divide by them"]]
    room = columns - len(label)
    if one is not None and cost.model is not None:
        short, ratio = _tokens(one), f"{one.ratio:.2f} x mean"
        whole = f"{short} (model {_part(cost.model)}{_whole_step(cost)})"
        long = joined([f"{whole}, busiest rank ({one.busiest_rank}) {ratio}", *_notes(cost)], room)
        texts = [[long or whole, f"{short}, busiest {ratio}", short.partition(" of ")[0]]]
        if one.decode is not None:
            texts.append([_decode(one.decode)])
    fitting = [first_fitting(choices, room, choices[-1]) for choices in texts[:most]]
    heads = label, " " * len(label)
    lines = [head + text for head, text in zip(heads, fitting, strict=False)]
    return [pad(in_turn(*_NUMBERS.split(line)), columns) for line in lines]


def cost_lines(cost: Cost | None, columns: int, *, whole: bool) -> list[Line]:
    """Of the model: the ``whole`` text, or one line."""
    if cost is None:
        return []
    text = f"cost: {model_cost(cost)}"
    parts = wrap(text, columns - 2) if whole else [text]
    return [crop([Span(f" {part}")], columns) for part in parts]


def model_cost(cost: Cost) -> str:
    """The cost on ranks in one line: of all layers, and of the worst."""
    known = [one for one in cost.layers if one is not None]
    if cost.model is None or not known:
        return f"{cost.ranks} ranks: no layer has counts of experts that divide by them"
    worst = max(known, key=lambda one: one.ratio)
    rank = f"busiest rank ({worst.busiest_rank}) {worst.ratio:.2f} x mean"
    where = f"(worst {worst.layer}: {_part(worst)}, {rank})"
    parts = [f"{_tokens(cost.model)}{_whole_step(cost)} {where}", *_notes(cost)]
    if reading := [(one.decode, one.layer) for one in known if one.decode is not None]:
        reads, layer = max(reading, key=lambda pair: pair[0].busiest / pair[0].mean)
        parts.append(f"{_decode(reads)} ({layer})")
    return f"{cost.ranks} ranks: {'; '.join(parts)}"


def _percent(share: float | None) -> str:
    if share is None:
        return "?"
    return f"{share:.1%}" if share < 0.1 else f"{share:.0%}"


def _part(of: Uneven) -> str:
    return _percent(of.drop_rate if of.lost_share is None else of.lost_share)


def _tokens(of: Uneven) -> str:
    if of.lost_share is None:
        return f"training and prefill drop {_part(of)} of the choices instead of waiting"
    return f"training and prefill lose {_part(of)} of expert time"


def _whole_step(cost: Cost) -> str:
    lost = cost.lost_throughput
    return f", {_percent(lost)} of a whole step" if lost is not None else ""


def _decode(of: Reads) -> str:
    reads = f"ranks read {of.mean:.1f} of {of.experts} experts, the busiest {of.busiest:.1f}"
    return f"decode of {of.tokens} tokens: {reads}"


def _notes(cost: Cost) -> list[str]:
    nodes = ""
    if cost.node_ratio:
        nodes = f"busiest node {cost.node_ratio:.2f} x mean"
    elif cost.nodes > 1:
        nodes = f"they do not divide by {cost.nodes} nodes"
    steps = f"mean of {cost.steps} steps" if cost.steps > 1 else f"step {cost.first_step:,}"
    return [text for text in (nodes, steps, _COUNTS.get(cost.counts, "")) if text]
