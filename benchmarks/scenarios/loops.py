"""True loops: routers that choose by score + bias, and a bias that follows the sign of the load.

What the bias does to the load, and the load to the bias, is simulated: nothing is drawn to fit.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

from benchmarks.scenarios.causes import before
from benchmarks.scenarios.lookalikes import Weight, groups_of, run_of
from microscope_tui.scenarios.collapsing import BESIDE_COLLAPSE
from microscope_tui.scenarios.course import BIAS_UPDATE_RATE, Course
from microscope_tui.scenarios.popularity import jittered, scaled_to
from microscope_tui.scenarios.run import Expected, Run, Shape, Step, around

_SPREAD = 0.05  # difference of two scores at which one expert is e times as popular
_LARGEST = 12.0
_BESIDE = BESIDE_COLLAPSE | {"COLLAPSE": "crit", "OSCILLATION": "warn"}
LINT = Expected(rule="LINT", tolerance=600)  # nothing is asked of its date


@dataclass
class Loop:
    """Scores are gaussian or lognormal; documents that span some steps correlate the tokens."""

    shape: Shape
    rng: random.Random
    start: float = 0.7  # c without a bias
    rate: float = BIAS_UPDATE_RATE
    wrong: Sequence[int] = ()  # routers whose update has the wrong sign
    moves: Callable[[int], bool] = lambda step: True
    late: int = 1  # steps whose load decides about an update
    resets: Sequence[int] = ()  # first steps after restarts that lose the bias
    data: Weight = lambda router, expert, step: 1.0
    logged: bool = True
    topics: dict[int, list[float]] = field(default_factory=dict)
    seen: dict[int, list[list[int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng, (routers, experts) = self.rng, (self.shape.routers, self.shape.num_experts)
        draw = rng.choice((lambda: rng.gauss(0, 1), lambda: rng.lognormvariate(0, 0.6)))
        self.span, self.steady = rng.randint(1, 6), rng.choice((60.0, 120.0, 300.0))
        rows = [[draw() for _ in range(experts)] for _ in range(routers)]
        self.scores = [scaled_to(row, self.shape, self.start) for row in rows]
        self.widest = max(max(row) - min(row) for row in self.scores)
        self.bias = [[0.0] * experts for _ in rows]
        self.used = list(self.bias)

    def weights(self, router: int, step: int) -> list[float]:
        if router not in self.topics or step % self.span == 0:
            even = [1.0] * self.shape.num_experts
            self.topics[router] = jittered(even, self.steady, self.rng)
        rows = zip(self.scores[router], self.bias[router], self.topics[router], strict=True)
        return [
            topic * self.data(router, e, step) * math.exp(min(_LARGEST, score + bias / _SPREAD))
            for e, (score, bias, topic) in enumerate(rows)
        ]

    def update(self, router: int, step: int, counts: list[int]) -> list[int]:
        """Move the bias by the counts that it led to."""
        self.used[router] = self.bias[router]
        self.seen[router] = [*self.seen.get(router, ()), counts][-self.late :]
        load = [sum(column) for column in zip(*self.seen[router], strict=True)]
        fair, by = sum(load) / len(load), self.rate if router in self.wrong else -self.rate
        if self.moves(step):
            rows = zip(self.bias[router], load, strict=True)
            self.bias[router] = [bias + by * ((n > fair) - (n < fair)) for bias, n in rows]
        if step + 1 in self.resets:
            self.bias[router] = [0.0] * len(load)
        return counts

    def run(self, *found: Expected, **more: Any) -> Run:
        balance = {"method": "bias", "bias_update_rate": self.rate, "update": "sign"}
        course = Course(popularity=self.weights, meter=self.update, bias_update_rate=None)
        more = {"allowed": _BESIDE if found else {}, "header": {"balance": balance}} | more
        run = run_of(self.shape, self.rng, course, *found, **more)
        return replace(run, steps=map(self._logged, run.steps))

    def _logged(self, step: Step) -> Step:
        """The true bias, and no margin, which nothing here has."""
        bias = [[round(b, 7) for b in row] if self.logged else [] for row in self.used]
        router = {name: values for name, values in step.router.items() if name != "margin"}
        return replace(step, expert_bias=bias, router=router)


def settles_late(shape: Shape, rng: random.Random) -> Run:
    """It begins at c 0.2 to 0.4 and is even by step 280."""
    loop = Loop(shape, rng, rng.uniform(0.2, 0.4))
    loop.rate = _SPREAD * loop.widest / rng.uniform(300, 500)
    return loop.run()


def wrong_sign(
    shape: Shape, rng: random.Random, flip: Sequence[int] = (), everywhere: bool = False
) -> Run:
    """Everywhere, or in one layer or two, the update pushes away from balance."""
    number = shape.routers if everywhere else rng.randint(1, min(2, shape.routers // 2))
    wrong = tuple(sorted(rng.sample(range(shape.routers), number)))
    loop = Loop(shape, rng, rng.uniform(0.5, 0.8), wrong=sorted({*wrong} ^ {*flip}))
    named = "" if everywhere else "".join(rf"(?=.*\bl{router + 1}\b)" for router in wrong)
    found = replace(LINT, routers=wrong)
    return loop.run(found, cause="sign", says=named, never="raise")


def still(
    shape: Shape, rng: random.Random, at: float = 0, drifts: bool = True, called: bool = False
) -> Run:
    """The bias stands from a step on; data that then change leave the layers uneven."""
    onset, target = round(at * rng.uniform(0.9, 1.1) * shape.steps), rng.uniform(0.3, 0.65)
    loop = Loop(shape, rng, moves=lambda step: called or step < onset)
    if not drifts:
        return loop.run()
    rows = [[rng.gauss(0, 1) for _ in row] for row in loop.scores]
    logs = [scaled_to(row, shape, target) for row in rows]
    loop.data = lambda r, e, step: math.exp(logs[r][e] * min(1.0, max(0, step - onset) / 100))
    found = replace(LINT, routers=tuple(range(shape.routers)), onset=max(1, onset))
    found = replace(found, severity="info")  # a layer may be even all the same
    says = "bias does not move.*call" + (".*bf16" if at else "")
    return loop.run(found, says=says, never="raise")


def sources(
    shape: Shape, rng: random.Random, c: tuple[float, float], logged: bool, warns: bool = False
) -> Run:
    """Two to four sources take turns, with a period of up to 12 steps; each likes other experts."""
    kinds, target = rng.randint(2, 4), rng.uniform(*c)
    holds, liked = rng.randint(1, 12 // kinds), list[list[list[float]]]()
    for _ in range(shape.routers):
        group = groups_of(shape.num_experts, kinds, rng)
        rows = [[rng.gauss(g == kind, 0.15) for g in group] for kind in range(kinds)]
        liked.append([list(map(math.exp, scaled_to(row, shape, target))) for row in rows])
    loop = Loop(shape, rng, logged=logged)
    loop.data = lambda router, e, step: liked[router][step // holds % kinds][e]
    if not warns:
        return loop.run(allowed={"STARVED": "warn"}, never="too high|lower bias")
    found = replace(LINT, rule="OSCILLATION", routers=tuple(range(shape.routers)))
    return loop.run(found, says="alternat", never=r"from [\d.e-]+ to |lower bias")


def overshoots(shape: Shape, rng: random.Random) -> Run:
    """The bias swings by itself: its rate is too high, and it may be averaged over some steps."""
    loop = Loop(shape, rng, rate=rng.uniform(0.1, 0.2), late=rng.randint(1, 4))
    loop.logged = rng.random() < 0.5
    found = replace(LINT, rule="OSCILLATION", routers=tuple(range(shape.routers)))
    return loop.run(found, cause="too high")


def tiny_rate(shape: Shape, rng: random.Random, rate: float = 0.0) -> Run:
    """The bias grows straight on, far too slowly; ten times as fast it arrives in 2,000 steps."""
    loop = Loop(shape, rng, 0.2)
    row = min(loop.scores, key=lambda row: max(row) - min(row))
    loop.scores = [rng.sample(row, len(row)) for _ in loop.scores]  # all as far from even
    tiny = float(f"{_SPREAD * (max(row) - min(row)) / 40_000:.0e}")
    loop.rate = rate or tiny
    found = replace(LINT, rule="BIAS_RUNAWAY", routers=tuple(range(shape.routers)))
    return loop.run(found, says=rf"to {10 * tiny:.3g}\b", never=rf"to {3 * tiny:.3g}\b")


def lost_at_resumes(shape: Shape, rng: random.Random) -> Run:
    """Every restart loses the bias, and the loop learns it again."""
    resets = [around(share * shape.steps, rng) for share in (0.25, 0.5, 0.75)]
    loop, onset = Loop(shape, rng, rng.uniform(0.3, 0.5), resets=resets), resets[0]
    return loop.run(
        *(replace(LINT, onset=onset),), says="save the bias", never="nothing now",
        edit=lambda records: reduce(lambda made, at: before(at)(made), resets, records),
    )  # fmt: skip
