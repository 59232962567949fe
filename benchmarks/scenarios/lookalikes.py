"""Hard negatives: runs that look faulty and are healthy."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from typing import Any

from microscope_tui.scenarios.collapsing import BESIDE_COLLAPSE, collapsing, fallen, growing, thin
from microscope_tui.scenarios.course import Course, steps
from microscope_tui.scenarios.healthy import hot_expert, settled
from microscope_tui.scenarios.popularity import (
    Popularity,
    blended,
    collapse_index,
    constant,
    pulled,
    scaled_to,
    uneven,
)
from microscope_tui.scenarios.run import (
    Expected,
    Record,
    Run,
    Shape,
    Step,
    Truth,
    around,
    hot_experts,
    some_routers,
)

Weight = Callable[[int, int, int], float]
"""``factor(router, expert, step)``: what the rhythm makes of an expert's weight."""
LOST_STEPS = 37
"""Steps after the checkpoint that a resumed run takes again."""
_WITHOUT_BIAS = 0.42  # collapse index of routers whose biases are gone
_RHYTHMS = ((1, 2), (1, 1, 2), (1, 4), (1, 1, 1, 3), (1, 2, 3, 2))
_NOTHING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Advised(Truth):
    """Patterns of the text in lower case: of the first line, or of any line of a healthy run."""

    says: str = ""
    never: str = ""


def run_of(shape: Shape, rng: random.Random, course: Course, *found: Expected, **more: Any) -> Run:
    """A run that takes this course; without a trouble it is a hard negative."""
    profile, cause = more.get("header", {}).get("profile", "pretrain"), more.pop("cause", "")
    beside = BESIDE_COLLAPSE | {"COLLAPSE": "warn"} if found and found[0].rule != "METER" else {}
    words = {name: more.pop(name, "") for name in ("says", "never")}
    truth = Advised(
        expected=found, allowed=more.pop("allowed", beside), profile=profile,
        hard_negative=not found, cause=cause, **words,
    )  # fmt: skip
    return replace(Run(shape=shape, truth=truth, steps=steps(shape, rng, course)), **more)


def fall(
    shape: Shape,
    rng: random.Random,
    onset: int,
    every: float,
    share: float = 0.3,
    *,
    confident: bool = False,
    sigma: float = 0.3,
    **changes: Any,
) -> tuple[Course, Expected]:
    """Some routers fall onto k experts, a log-weight in ``every`` steps; all loads are uneven."""
    sick, base = some_routers(shape, share, rng), constant(shape, sigma, rng)
    popularity = pulled(base, hot_experts(shape, sick, rng), growing(onset, every))
    course = collapsing(popularity, sick, onset, confident=confident)
    return replace(course, **changes), fallen(popularity, sick, shape, onset)


def specialised(shape: Shape, rng: random.Random) -> Run:
    """Specialised experts: confident tokens, uneven but steady load."""
    level = rng.uniform(0.22, 0.3)
    course = Course(
        popularity=constant(shape, 0.7, rng),
        concentration=lambda step: 120.0,
        token_entropy=lambda router, step: max(level, 0.98 - step / 400),
    )
    return run_of(shape, rng, course)


def soft(shape: Shape, rng: random.Random) -> Run:
    """Token entropy near its maximum for ever, yet the routing is learned."""
    level = rng.uniform(0.978, 0.988)
    course = Course(
        popularity=constant(shape, 0.2, rng),
        token_entropy=lambda router, step: level,
        softness=lambda router, step: 0.9,
    )
    return run_of(shape, rng, course)


def warm_up(shape: Shape, rng: random.Random) -> Run:
    """k experts take most tokens in the first steps, with drops; recovers by itself."""
    shape = replace(shape, capacity_factor=1.5)
    hot = hot_experts(shape, tuple(range(shape.routers)), rng)
    pace = 40 * rng.uniform(0.9, 1.1)

    def pull(step: int) -> float:
        return 3 * math.exp(-step / pace) if step < 400 else 0.0

    return run_of(shape, rng, Course(popularity=pulled(constant(shape, 0.12, rng), hot, pull)))


def small_batch(shape: Shape, rng: random.Random) -> Run:
    """96 tokens a step: most of the unevenness is chance."""
    shape = replace(shape, tokens=96)
    course = Course(popularity=constant(shape, 0.2, rng), concentration=lambda step: 60.0)
    return run_of(shape, rng, course)


def domain_bursts(shape: Shape, rng: random.Random) -> Run:
    """For 40 of every 200 steps the batches are of one kind and the load jumps about."""
    offset = rng.randrange(200)
    course = Course(
        popularity=constant(shape, 0.35, rng),
        concentration=lambda step: 25.0 if (step + offset) % 200 < 40 else 400.0,
    )
    return run_of(shape, rng, course)


def narrow_finetune(shape: Shape, rng: random.Random) -> Run:
    """A good model on narrow data: uneven from the first step on."""
    level = rng.uniform(0.3, 0.5)
    popularity = constant(shape, 0.875, rng)
    return _tuned(shape, rng, popularity, token_entropy=lambda router, step: level)


def _tuned(shape: Shape, rng: random.Random, popularity: Popularity, **changes: Any) -> Run:
    course = Course(popularity=popularity, concentration=lambda step: 120.0, **changes)
    return run_of(shape, rng, course, header={"profile": "finetune"})


def even_but_one(shape: Shape, rng: random.Random) -> Run:
    """Every token chooses the same expert of a router, and the other choices are even."""
    return hot_expert(shape, rng, 0.02, 12.0)


def upcycled(shape: Shape, rng: random.Random) -> Run:
    """Experts that begin as copies: even load and uniform tokens until they have parted."""
    begin = around(0.2 * shape.steps, rng)
    progress = growing(begin, 0.3 * shape.steps, limit=1.0)
    course = Course(
        popularity=blended(uneven(shape, 0.02, rng), uneven(shape, 0.3, rng), progress),
        token_entropy=lambda router, step: 0.997 - 0.3 * progress(step),
        softness=lambda router, step: 1 - 0.8 * progress(step),
    )
    return run_of(shape, rng, course, header={"config": {"upcycled": True}})


def resume_bias_reset(shape: Shape, rng: random.Random) -> Run:
    """A resumed run whose biases start from zero: uneven for some sixty steps, then well again."""
    again = around(0.5 * shape.steps, rng)
    even = uneven(shape, rng.uniform(0.1, 0.25), rng)
    drawn = [[rng.gauss(0, 1) for _ in row] for row in even]
    off = [scaled_to(row, shape, _WITHOUT_BIAS) for row in drawn]
    first = Course(popularity=blended(even, even, lambda step: 0.0))
    second = replace(first, popularity=blended(even, off, lambda step: _healing(step - again)))
    last = min(shape.steps, again + LOST_STEPS)
    parts = chain(steps(shape, rng, first, last=last), steps(shape, rng, second, first=again))
    run = run_of(shape, rng, first, steps=parts, edit=_resumed)
    return replace(run, truth=replace(run.truth, allowed={"LINT": "warn"}))


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
    """Steps are missing or out of order, a router logs nothing for a while, the end is torn."""
    silent = rng.randrange(shape.routers)
    begin = around(0.5 * shape.steps, rng)
    silence = range(begin, begin + shape.steps // 10)
    gap = around(0.3 * shape.steps, rng)
    course = Course(popularity=settled(shape, rng))

    def muted(step: Step) -> Step:
        if step.step not in silence:
            return step
        router = {name: without(values) for name, values in step.router.items()}
        return replace(step, tokens_per_expert=without(step.tokens_per_expert), router=router)

    def without(values: list[Any]) -> list[Any]:
        return [*values[:silent], None, *values[silent + 1 :]]

    edit = _ragged(random.Random(rng.random()), range(gap, gap + 20))
    muted_steps = map(muted, steps(shape, rng, course))
    return run_of(shape, rng, course, steps=muted_steps, edit=edit, torn=True)


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


def narrow_and_steady(shape: Shape, rng: random.Random, **changes: Any) -> Run:
    """A fine-tuning on data so narrow that a layer is as uneven as an early collapse, for good."""
    sick = some_routers(shape, 0.3, rng)
    weights = [[math.exp(log) for log in row] for row in narrow(shape, sick, rng)]
    return _tuned(shape, rng, lambda router, step: weights[router], **changes)


def parting(shape: Shape, rng: random.Random) -> Run:
    """Experts part from an equal start, to c 0.75 to 0.8, and stay so: they have specialised."""
    begin, last = around(0.15 * shape.steps, rng), around(0.2 * shape.steps, rng)
    target = rng.uniform(0.75, 0.8)
    drawn = [[rng.uniform(-1, 1) for _ in range(shape.num_experts)] for _ in range(shape.routers)]
    apart = [scaled_to(row, shape, target) for row in drawn]
    popularity = blended(uneven(shape, 0.02, rng), apart, growing(begin, last, limit=1.0))
    course = Course(popularity=popularity)
    return run_of(shape, rng, course, allowed={"STARVED": "warn"})  # one may be below a tenth


def data_in_blocks(shape: Shape, rng: random.Random) -> Run:
    """The data comes in blocks of 30 to 40 steps; in each a quarter of the experts rests."""
    quarters = [groups_of(shape.num_experts, 4, rng) for _ in range(shape.routers)]
    lengths = [rng.randint(30, 40) for _ in range(shape.steps // 30 + 1)]
    kinds = [0]
    for _ in lengths:
        kinds.append((kinds[-1] + rng.randint(1, 3)) % 4)  # never the same one again at once
    kind_at = [kind for kind, length in zip(kinds, lengths, strict=False) for _ in range(length)]

    def factor(router: int, expert: int, step: int) -> float:
        return _NOTHING if quarters[router][expert] == kind_at[step - 1] else 1.0

    popularity = modulated(constant(shape, 0.3, rng), factor)
    return run_of(shape, rng, Course(popularity=popularity, concentration=lambda step: 120.0))


def alternating_tokens(shape: Shape, rng: random.Random) -> Run:
    """Steps of one and of two times the tokens take turns; every expert keeps its share."""
    rhythm = rng.choice(_RHYTHMS)
    course = Course(popularity=constant(shape, 0.4, rng))

    def scaled(step: Step) -> Step:
        times = rhythm[step.step % len(rhythm)]
        rows = [[n * times for n in row] if row else row for row in step.tokens_per_expert]
        return replace(step, tokens=step.tokens * times, tokens_per_expert=rows)

    return run_of(shape, rng, course, steps=map(scaled, steps(shape, rng, course)))


def fine_grained(shape: Shape, rng: random.Random) -> Run:
    """Many small experts specialise: the busiest one rises to five to ten times its share.

    With few experts it stays at twice its share: more would be half a collapse.
    """
    begin = around(0.15 * shape.steps, rng)
    length = max(1, round(rng.uniform(0.2, 0.5) * shape.steps))
    even, parted = uneven(shape, 0.1, rng), uneven(shape, 0.5, rng)
    for row in parted:
        most = 0.85 * shape.num_experts / shape.top_k if shape.num_experts >= 64 else 2.0
        for place, expert in enumerate(rng.sample(range(len(row)), max(1, len(row) // 64))):
            load = min(most, rng.uniform(5, 10) / (1 + place / 2))
            row[expert] = math.log(load * (shape.num_experts - 1) / (shape.num_experts - load))
    course = Course(
        popularity=blended(even, parted, growing(begin, length, limit=1.0)),
        concentration=lambda step: 120.0,
    )
    return run_of(shape, rng, course)


def hovering(shape: Shape, rng: random.Random) -> Run:
    """A fine-tuning in which an eighth of the experts stays about a tenth of its share."""
    waves = [(rng.uniform(60, 400), rng.uniform(0, 2 * math.pi)) for _ in range(3)]

    def level(step: int) -> float:
        wander = sum(math.sin(2 * math.pi * step / length + phase) for length, phase in waves)
        return 0.1 + 0.04 * min(1.0, step / 100) * wander / 2 + 0.03 * math.exp(-step / 80)

    run = thin(shape, rng, level)
    return replace(run, truth=Truth(profile="finetune", hard_negative=True))


def narrow(shape: Shape, routers: Sequence[int], rng: random.Random) -> list[list[float]]:
    """Logarithms of popularity; in some routers c is 0.2 to 0.33, and no expert has them all."""
    rows = uneven(shape, 0.4, rng)
    for router in routers:
        target = rng.uniform(0.2, 0.33)
        rows[router] = few_busy(shape, target, rng)
    return rows


def few_busy(shape: Shape, target: float, rng: random.Random) -> list[float]:
    """Some experts share most of the tokens, and the others what brings c to ``target``."""
    busy = round(shape.top_k + 0.7 * target * (shape.num_experts - shape.top_k))
    chosen = set(rng.sample(range(shape.num_experts), max(shape.top_k + 1, busy)))
    low, high = 0.0, 12.0  # how far the others are below
    for _ in range(40):
        gap = (low + high) / 2
        logs = [0.0 if e in chosen else -gap for e in range(shape.num_experts)]
        if collapse_index([math.exp(log) for log in logs], shape) > target:
            low = gap
        else:
            high = gap
    return [log + rng.gauss(0, 0.05) for log in logs]


def groups_of(experts: int, groups: int, rng: random.Random) -> list[int]:
    """The group of every expert; groups of as equal a size as can be."""
    ends = list(accumulate([experts // groups + (g < experts % groups) for g in range(groups)]))
    drawn = [next(g for g, end in enumerate(ends) if e < end) for e in range(experts)]
    rng.shuffle(drawn)
    return drawn


def modulated(base: Popularity, factor: Weight) -> Popularity:
    """``base`` with every weight multiplied by ``factor``."""

    def popularity(router: int, step: int) -> Sequence[float]:
        weights = base(router, step)
        return [weight * factor(router, e, step) for e, weight in enumerate(weights)]

    return popularity
