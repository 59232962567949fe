"""Runs with a wrong or incomplete log and healthy routers."""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain

from microscope_tui.scenarios.course import Course, Meter, steps
from microscope_tui.scenarios.healthy import settled
from microscope_tui.scenarios.popularity import blended, scaled_to, uneven
from microscope_tui.scenarios.run import Record, Run, around, hot_experts
from microscope_tui.scenarios.shape import Shape, Step, Values
from microscope_tui.scenarios.synthetic import whole
from microscope_tui.scenarios.truth import Expected, Truth

LOST_STEPS = 37
"""Steps after the checkpoint that a resumed run takes again."""
_WITHOUT_BIAS = 0.42  # collapse index of routers whose biases are gone


def _measured(shape: Shape, rng: random.Random, meter: Meter, severity: str) -> Run:
    course = Course(popularity=settled(shape, rng), meter=meter)
    found = Expected(rule="METER", severity=severity)
    return Run(shape=shape, truth=Truth(expected=(found,)), steps=steps(shape, rng, course))


def forced_balance(shape: Shape, rng: random.Random) -> Run:
    """A debugging flag was left on: every expert gets the same count, up to one token."""

    def meter(router: int, step: int, counts: list[int]) -> list[int]:
        turn = (step + router) % len(counts)
        even = whole([1.0] * len(counts), sum(counts))
        return even[turn:] + even[:turn]

    return _measured(shape, rng, meter, "info")


def double_counting(shape: Shape, rng: random.Random) -> Run:
    """The counter runs again in activation recomputation."""
    return _measured(shape, rng, lambda router, step, counts: [2 * n for n in counts], "error")


def padding(shape: Shape, rng: random.Random) -> Run:
    """60 % of what is counted is padding, and all of it goes to the same k experts."""
    taken = hot_experts(shape, tuple(range(shape.routers)), rng)
    pads = round(1.5 * shape.tokens)

    def meter(router: int, step: int, counts: list[int]) -> list[int]:
        padded = list(counts)
        for expert in taken[router]:
            padded[expert] += pads
        return padded

    return _measured(shape, rng, meter, "error")


def nan(shape: Shape, rng: random.Random) -> Run:
    """The model computes NaN: the entropies are gone, and every choice is among the first k."""
    onset = around(0.8 * shape.steps, rng)
    first = [shape.tokens] * shape.top_k + [0] * (shape.num_experts - shape.top_k)

    def meter(router: int, step: int, counts: list[int]) -> list[int]:
        return list(first) if step >= onset else counts

    course = Course(popularity=settled(shape, rng), meter=meter)

    def blinded(step: Step) -> Step:
        if step.step < onset:
            return step
        gone: Values = [math.nan] * shape.routers
        names = ("mean_entropy", "z_loss", "max_logit", "grad_norm", "selected_mass", "margin")
        router = {**step.router, **dict.fromkeys(names, gone)}
        # Some writers log the NaN, others leave the value out.
        router["entropy"] = [None if r % 2 else math.nan for r in range(shape.routers)]
        return replace(step, loss=math.nan, grad_norm=math.nan, router=router)

    found = Expected(rule="METER", onset=onset, severity="error")
    return Run(
        shape=shape,
        truth=Truth(expected=(found,)),
        steps=map(blinded, steps(shape, rng, course)),
    )


def resume_bias_reset(shape: Shape, rng: random.Random) -> Run:
    """A resumed run whose biases start from zero: uneven for some sixty steps, then well again."""
    again = around(0.5 * shape.steps, rng)
    even = uneven(shape, rng.uniform(0.1, 0.25), rng)
    drawn = [[rng.gauss(0, 1) for _ in row] for row in even]
    off = [scaled_to(row, shape, _WITHOUT_BIAS) for row in drawn]
    first = Course(popularity=blended(even, even, lambda step: 0.0))
    second = replace(first, popularity=blended(even, off, lambda step: _healing(step - again)))
    last = min(shape.steps, again + LOST_STEPS)
    return Run(
        shape=shape,
        truth=Truth(hard_negative=True),
        steps=chain(steps(shape, rng, first, last=last), steps(shape, rng, second, first=again)),
        edit=_resumed,
    )


def _healing(since: int) -> float:
    return math.exp(-since / 20) * 0.999 if since < 150 else 0.0


def _resumed(records: Iterator[Record]) -> Iterator[Record]:
    """A run record before the step that is taken again."""
    header: Record = {}
    last = 0
    for record in records:
        if record["kind"] == "run":
            header = record
        elif record["kind"] == "step":
            if record["step"] <= last:
                yield header | {"time": record["time"], "resumed_at_step": record["step"]}
            last = record["step"]
        yield record


def ragged(shape: Shape, rng: random.Random) -> Run:
    """Steps are missing or out of order, a router says nothing for a while, the end is torn."""
    silent = rng.randrange(shape.routers)
    begin = around(0.5 * shape.steps, rng)
    silence = range(begin, begin + shape.steps // 10)
    gap = around(0.3 * shape.steps, rng)
    course = Course(popularity=settled(shape, rng))

    def muted(step: Step) -> Step:
        if step.step not in silence:
            return step
        rows = list(step.tokens_per_expert)
        rows[silent] = None
        router = {name: list(values) for name, values in step.router.items()}
        for values in router.values():
            values[silent] = None
        return replace(step, tokens_per_expert=rows, router=router)

    return Run(
        shape=shape,
        truth=Truth(hard_negative=True),
        steps=map(muted, steps(shape, rng, course)),
        edit=_ragged(random.Random(rng.random()), range(gap, gap + 20)),
        torn=True,
    )


def _ragged(rng: random.Random, gap: range) -> Callable[[Iterator[Record]], Iterator[Record]]:
    def edit(records: Iterator[Record]) -> Iterator[Record]:
        held: Record | None = None
        for record in records:
            if record["kind"] != "step":
                yield record
                continue
            if record["step"] in gap or rng.random() < 0.02:
                continue
            if held is None and rng.random() < 0.03:
                held = record
                continue
            yield record
            if held is not None:
                yield held
                held = None
        if held is not None:
            yield held

    return edit
