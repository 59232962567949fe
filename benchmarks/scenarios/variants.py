"""Variants of the troubles that ``microscope_tui.scenarios`` shows, and faults near a limit."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from benchmarks.scenarios.lookalikes import Weight, fall, groups_of, modulated, narrow, run_of
from microscope_tui.scenarios.collapsing import (
    BESIDE_COLLAPSE,
    collapsing,
    fallen,
    growing,
    slow_collapse,
)
from microscope_tui.scenarios.control import (
    LINT,
    TOO_FAST,
    configured,
    dead_gradient,
    measured,
    oscillation,
    pooled_aux,
)
from microscope_tui.scenarios.course import Course, steps
from microscope_tui.scenarios.healthy import settled
from microscope_tui.scenarios.popularity import constant, pulled, whole
from microscope_tui.scenarios.run import (
    Expected,
    Record,
    Run,
    Shape,
    Step,
    Truth,
    Values,
    around,
    hot_experts,
    some_routers,
)

SHARES_SUM = 1_000_000
LONG_PLAN = 100_000
APART = 50
"""Steps between two lines of a sparse log."""
SLOWEST = 32
"""Steps of the longest period that OSCILLATION can see."""
_ODD_PERIODS = (3.0, 3.0, 5.0, 7.0, 2.5, 3.4)
_POOLED_SICK = 0.75  # share of the routers that collapse behind the pooled loss


def from_shares(shape: Shape, rng: random.Random) -> Run:
    """A slow collapse, logged as shares of the load only."""
    run = slow_collapse(shape, rng, lambda router, step, counts: whole(counts, SHARES_SUM), "warn")
    return replace(run, header={"source": {"counts": "shares"}})


def collapse_unconfident(shape: Shape, rng: random.Random) -> Run:
    """Half of the routers fall within some twenty steps; their token entropy reads healthy."""
    onset = around(0.1 * shape.steps, rng) + 40
    return run_of(shape, rng, *fall(shape, rng, onset, 4, 0.5, sigma=0.2))


def early_collapse(shape: Shape, rng: random.Random) -> Run:
    """The same within the warm-up, where imbalance is normal but a total collapse is not."""
    return run_of(shape, rng, *fall(shape, rng, around(5, rng), 4, sigma=0.2))


def from_top1(shape: Shape, rng: random.Random) -> Run:
    """An unconfident collapse, logged as the first choice of every token only."""
    run = collapse_unconfident(replace(shape, top_k=1), rng)
    (found,) = run.truth.expected
    truth = replace(run.truth, expected=(replace(found, severity="warn"),))
    return replace(run, truth=truth, header={"source": {"counts": "top1"}})


def lr_restarts(shape: Shape, rng: random.Random) -> Run:
    """The learning rate jumps up three times; a router recovers twice, but not again."""
    sick = some_routers(shape, 1 / shape.routers, rng)
    restarts = [round(share * shape.steps * rng.uniform(0.97, 1.03)) for share in (0.25, 0.5, 0.75)]
    last = restarts[-1]

    def pull(step: int) -> float:
        if step >= last:
            return min(9.0, (step - last) / 3)
        return max(_bump(step - restart) for restart in restarts[:-1])

    popularity = pulled(settled(shape, rng), hot_experts(shape, sick, rng), pull)
    course = replace(
        collapsing(popularity, sick, last, confident=True),
        learning_rate=_restarting(restarts, shape.steps),
    )
    shocks = (
        Expected(rule="SHOCK", routers=sick, onset=at, until=at + 30, severity="info")
        for at in restarts[:-1]
    )
    found = fallen(popularity, sick, shape, last)
    truth = Truth(expected=(*shocks, found), allowed=BESIDE_COLLAPSE)
    return Run(shape=shape, truth=truth, steps=steps(shape, rng, course))


def _bump(since: int) -> float:
    return 5 * math.exp(-(((since - 12) / 8) ** 2)) if 0 <= since < 40 else 0.0


def _restarting(restarts: Sequence[int], end: int) -> Callable[[int], float]:
    edges = [0, *restarts, end]

    def rate(step: int) -> float:
        start = max(edge for edge in edges[:-1] if edge < step)
        stop = min(edge for edge in edges if edge > start)
        turn = math.pi * (step - start) / (stop - start)
        return 1e-3 * min(1.0, step / 100) * (0.55 + 0.45 * math.cos(turn))

    return rate


def bias_bang_bang(shape: Shape, rng: random.Random) -> Run:
    """The bias overshoots: two halves of the experts take turns, step by step."""
    swing = rng.uniform(0.8, 1.3)
    return oscillation(shape, rng, [math.pi * (e % 2) for e in range(shape.num_experts)], 2, swing)


def forced_balance(shape: Shape, rng: random.Random) -> Run:
    """A debugging flag was left on: every expert gets the same count, up to one token."""

    def meter(router: int, step: int, counts: list[int]) -> list[int]:
        turn = (step + router) % len(counts)
        even = whole([1.0] * len(counts), sum(counts))
        return even[turn:] + even[:turn]

    return measured(shape, rng, meter, "info")


def padding(shape: Shape, rng: random.Random) -> Run:
    """60 % of what is counted is padding, and all of it goes to the same k experts."""
    taken = hot_experts(shape, tuple(range(shape.routers)), rng)
    pads = round(1.5 * shape.tokens)

    def meter(router: int, step: int, counts: list[int]) -> list[int]:
        return [n + pads * (expert in taken[router]) for expert, n in enumerate(counts)]

    return measured(shape, rng, meter, "error")


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

    found = Expected(rule="DIVERGED", onset=onset, severity="crit")
    known = {"allowed": {"COLLAPSE": "crit", "GRADSPIKE": "crit", **BESIDE_COLLAPSE}}
    known |= {"cause": "diverged at", "steps": map(blinded, steps(shape, rng, course))}
    return run_of(shape, rng, course, found, **known)


def impossible_counts(shape: Shape, rng: random.Random) -> Run:
    """All k choices are counted on the first one: an expert has more pairs than there are tokens.

    Every row still sums to tokens × k. Half of the logs hold the summaries of such counts alone.
    """
    sick = some_routers(shape, 0.3, rng)
    onset = around(0.3 * shape.steps, rng)
    hot = {router: rng.randrange(shape.num_experts) for router in sick}
    share = rng.uniform(0.8, 0.98)
    summaries_only = rng.random() < 0.5

    def meter(router: int, step: int, counts: list[int]) -> list[int]:
        if router not in hot or step < onset:
            return counts
        scale = (1 - share) / max(1, sum(counts) - counts[hot[router]])
        wanted = [share if e == hot[router] else scale * n for e, n in enumerate(counts)]
        return whole(wanted, sum(counts))

    course = Course(popularity=settled(shape, rng), meter=meter)
    found = Expected(rule="METER", routers=sick, onset=onset, severity="error")
    header = {"source": {"counts": "none"}} if summaries_only else {}
    edit = _without_counts if summaries_only else None
    return run_of(shape, rng, course, found, header=header, edit=edit)


def _without_counts(records: Iterator[Record]) -> Iterator[Record]:
    for record in records:
        record.pop("tokens_per_expert", None)
        yield record


def top1_normalised(shape: Shape, rng: random.Random) -> Run:
    """One choice per token, its weight divided by itself: no gradient, and soft for ever."""
    run = dead_gradient(replace(shape, top_k=1), rng)
    truth = replace(run.truth, expected=(LINT, *run.truth.expected), cause="top-1")
    model = {"score_function": "softmax", "norm_top_k": True}
    return replace(run, truth=truth, header=run.header | {"model": model})


def gpt_oss_aux(shape: Shape, rng: random.Random) -> Run:
    """The published configuration is fine-tuned with its huge balancing loss."""
    model = {"name": "gpt-oss-20b", "score_function": "softmax"}
    balance = {"method": "aux", "aux_weight": 0.9, "output_router_logits": True}
    return configured(shape, rng, {"model": model, "balance": balance})


def pooled_aux_fits(shape: Shape) -> bool:
    """The collapsed routers must be enough to cover nearly all experts."""
    sick = round(_POOLED_SICK * shape.routers)
    return shape.routers >= 4 and sick * shape.top_k >= 0.8 * shape.num_experts >= 1.6 * shape.top_k


def pooled_aux_cancels(shape: Shape) -> bool:
    """There are enough routers to cover every expert equally often: then the sum is even."""
    return shape.num_experts >= 8 and shape.routers >= shape.num_experts / shape.top_k >= 1.6


def pooled_aux_loss(shape: Shape, rng: random.Random, even: bool = False) -> Run:
    """Routers collapse on different experts each, and the loss of their sum sees nothing."""
    each = shape.num_experts // shape.top_k
    share = shape.routers // each * each / shape.routers if even else _POOLED_SICK
    sick = some_routers(shape, share, rng)
    onset = around(0.2 * shape.steps, rng)
    ids = rng.sample(range(shape.num_experts), shape.num_experts)
    hot = {
        router: tuple(ids[(place * shape.top_k + j) % len(ids)] for j in range(shape.top_k))
        for place, router in enumerate(sick)
    }
    popularity = pulled(settled(shape, rng), hot, growing(onset, 15))
    course = replace(
        collapsing(popularity, sick, onset, confident=True),
        bias_update_rate=None,
        losses=lambda counts: {"aux": pooled_aux(counts, shape)},
    )
    collapsed = fallen(popularity, sick, shape, onset)
    lint = replace(LINT, onset=onset, tolerance=150)
    model = {"name": "mixtral", "score_function": "softmax"}
    balance = {"method": "aux", "aux_weight": 0.02, "output_router_logits": True}
    header = {"model": model, "balance": balance}
    return run_of(shape, rng, course, lint, collapsed, cause="pooled", header=header)


def dead_groups(shape: Shape, rng: random.Random) -> Run:
    """More than half of the experts of a router die at once: a group that is never chosen."""
    (sick,) = some_routers(shape, 1 / shape.routers, rng)
    onset = around(0.2 * shape.steps, rng)
    dying = tuple(sorted(rng.sample(range(shape.num_experts), math.ceil(0.55 * shape.num_experts))))
    popularity = pulled(settled(shape, rng), {sick: dying}, lambda step: -30.0 * (step >= onset))
    course = Course(popularity=popularity, unheeded=lambda r, step: r == sick and step >= onset)
    found = Expected(rule="DEAD", severity="crit", experts=dying, tolerance=60)
    return run_of(shape, rng, course, replace(found, routers=(sick,), onset=onset))


def finetune_collapse(shape: Shape, rng: random.Random) -> Run:
    """A fine-tuning on narrow data whose layer falls onto k experts all the same."""
    sick, onset = some_routers(shape, 1 / shape.routers, rng), around(0.4 * shape.steps, rng)
    weights = [[math.exp(log) for log in row] for row in narrow(shape, sick, rng)]
    hot = hot_experts(shape, sick, rng)
    popularity = pulled(lambda router, step: weights[router], hot, growing(onset, 6, limit=25))
    # Uneven before, it is "collapsed" from the start by the limit of a pretraining.
    found = Expected(rule="COLLAPSE", routers=sick, onset=onset, severity="crit", tolerance=100)
    course = collapsing(popularity, sick, onset, confident=True)
    return run_of(shape, rng, course, found, header={"profile": "finetune"})


def long_plan(shape: Shape, rng: random.Random) -> Run:
    """A layer that is even falls within the long warm-up of a long plan."""
    course, found = fall(shape, rng, around(150, rng), 4, sigma=0.1)
    return run_of(shape, rng, course, found, header={"planned_steps": LONG_PLAN})


def sparse(shape: Shape, rng: random.Random) -> Run:
    """A collapse in a log with a line for every fiftieth step."""
    course, found = fall(shape, rng, around(0.4 * shape.steps, rng), 1, confident=True, sigma=0.2)
    found = replace(found, onset=found.onset * APART, tolerance=25 * APART)

    def spread(records: Iterator[Record]) -> Iterator[Record]:
        for record in records:
            if "step" in record:
                record["step"] *= APART
            yield record

    header = {"planned_steps": shape.steps * APART}
    return run_of(shape, rng, course, found, header=header, edit=spread)


def rotation(shape: Shape, rng: random.Random) -> Run:
    """Three groups of experts or more take turns; the others get next to nothing meanwhile."""
    most = max(3, min(12, shape.num_experts // max(1, shape.top_k)))
    groups = rng.randint(3, most)
    hold = rng.randint(1, max(1, min(5, SLOWEST // groups)))
    swing = rng.uniform(1.5, 12.0)
    of = [groups_of(shape.num_experts, groups, rng) for _ in range(shape.routers)]

    def factor(router: int, expert: int, step: int) -> float:
        return 1.0 if of[router][expert] == step // hold % groups else math.exp(-swing)

    return _swinging(shape, rng, factor, sigma=0.4)


def odd_period(shape: Shape, rng: random.Random) -> Run:
    """The load swings smoothly with a period of three steps, five, or two and a half."""
    period, swing = rng.choice(_ODD_PERIODS), rng.uniform(0.8, 1.3)
    phases = [2 * math.pi * rng.randrange(3) / 3 for _ in range(shape.num_experts)]
    return _swinging(shape, rng, wave(period, swing, phases), sigma=0.3)


def wave(period: float, swing: float, phases: Sequence[float]) -> Weight:
    """Every expert swings by the same log-weight, with a phase of its own."""

    def factor(router: int, expert: int, step: int) -> float:
        return math.exp(swing * math.cos(2 * math.pi * step / period + phases[expert]))

    return factor


def slow_swing(shape: Shape, rng: random.Random) -> Run:
    """A swing with a period of 40 to 80 steps, too long to distinguish from blocks of data."""
    period, swing = rng.uniform(40, 80), rng.uniform(0.6, 1.0)
    phases = [rng.uniform(0, 2 * math.pi) for _ in range(shape.num_experts)]
    run = _swinging(shape, rng, wave(period, swing, phases), sigma=0.2)
    allowed = {"OSCILLATION": "warn", "BIAS_RUNAWAY": "warn"}  # correct if it is detected
    return replace(run, truth=Truth(allowed=allowed, hard_negative=True))


def _swinging(shape: Shape, rng: random.Random, factor: Weight, sigma: float) -> Run:
    """Some routers swing from an onset on, around an uneven load and with noise of their own."""
    sick = some_routers(shape, 0.4, rng)
    onset = around(0.2 * shape.steps, rng)
    well, ill = settled(shape, rng), constant(shape, sigma, rng)
    swung = modulated(ill, factor)

    def popularity(router: int, step: int) -> Sequence[float]:
        swings = step >= onset and router in sick
        return swung(router, step) if swings else (ill if router in sick else well)(router, step)

    course = Course(
        popularity=popularity,
        concentration=lambda step: 60.0,
        bias_update_rate=TOO_FAST,
        unheeded=lambda router, step: step >= onset and router in sick,
    )
    found = Expected(rule="OSCILLATION", routers=sick, onset=onset, tolerance=130)
    header = {"balance": {"method": "bias", "bias_update_rate": TOO_FAST}}
    allowed = {"OVERLOAD": "warn", "BIAS_RUNAWAY": "warn", "STARVED": "warn"}  # in turn
    return run_of(shape, rng, course, found, header=header, allowed=allowed)
