"""True loops: routers that choose by score + bias, and a bias that follows the sign of the load.

What the bias does to the load, and the load to the bias, is simulated: nothing is drawn to fit.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from benchmarks.scenarios.lookalikes import Weight, groups_of, run_of
from microscope_tui.scenarios.collapsing import BESIDE_COLLAPSE
from microscope_tui.scenarios.course import BIAS_UPDATE_RATE, Course
from microscope_tui.scenarios.popularity import jittered, scaled_to
from microscope_tui.scenarios.run import Expected, Record, Run, Shape, Truth, around

Rows = list[list[float]]
SPREAD = 0.05
"""Difference of two scores at which one expert is e times as popular as the other."""
_LARGEST = 12.0
_LATE = 600
"""A tolerance: nothing is asked of the date."""
_BESIDE = BESIDE_COLLAPSE | {"COLLAPSE": "crit", "OSCILLATION": "warn"}
LINT = Expected(rule="LINT", tolerance=_LATE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Advised(Truth):
    """A truth that also knows the remedy. Of the first line; of every line of a healthy run."""

    says: str = ""
    """A pattern of the text, in lower case."""
    never: str = ""


def advised(run: Run, says: str = "", never: str = "") -> Run:
    """The run, and what the text about it must say and must not."""
    known = {one.name: getattr(run.truth, one.name) for one in fields(Truth)}
    return replace(run, truth=Advised(**known, says=says, never=never))


@dataclass
class Loop:
    """Scores are gaussian or lognormal; documents that span some steps correlate the tokens."""

    shape: Shape
    rng: random.Random
    start: float = 0.7
    """c without a bias."""
    rate: float = BIAS_UPDATE_RATE
    wrong: Sequence[int] = ()
    """Routers whose update has the wrong sign."""
    moves: Callable[[int], bool] = lambda step: True
    late: int = 1
    """Steps whose load decides about an update."""
    resets: Sequence[int] = ()
    """First steps after restarts that lose the bias."""
    data: Weight = lambda router, expert, step: 1.0
    logged: bool = True
    spread: float = SPREAD
    topics: dict[int, list[float]] = field(default_factory=dict)
    seen: dict[int, list[list[int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng, ids = self.rng, range(self.shape.num_experts)
        heavy, self.lasts = rng.random() < 0.5, rng.randint(1, 6)
        self.steady = rng.choice((60.0, 120.0, 300.0))
        self.scores = Rows()
        for _ in range(self.shape.routers):
            row = [rng.lognormvariate(0, 0.6) if heavy else rng.gauss(0, 1) for _ in ids]
            self.scores.append(scaled_to(row, self.shape, self.start))
        self.bias: Rows = [[0.0 for _ in ids] for _ in self.scores]
        self.routed_with = list(self.bias)

    def weights(self, router: int, step: int) -> list[float]:
        if router not in self.topics or step % self.lasts == 0:
            even = [1.0] * self.shape.num_experts
            self.topics[router] = jittered(even, self.steady, self.rng)
        pairs = zip(self.scores[router], self.bias[router], self.topics[router], strict=True)
        return [
            topic * self.data(router, e, step) * math.exp(min(_LARGEST, score + bias / self.spread))
            for e, (score, bias, topic) in enumerate(pairs)
        ]

    def update(self, router: int, step: int, counts: list[int]) -> list[int]:
        """Take the counts that the bias of this step led to, and move the bias."""
        self.routed_with[router] = self.bias[router]
        self.seen[router] = [*self.seen.get(router, ()), counts][-self.late :]
        load = [sum(column) for column in zip(*self.seen[router], strict=True)]
        fair, by = sum(load) / len(load), self.rate if router in self.wrong else -self.rate
        if self.moves(step):
            pairs = zip(self.bias[router], load, strict=True)
            self.bias[router] = [bias + by * ((n > fair) - (n < fair)) for bias, n in pairs]
        if step + 1 in self.resets:
            self.bias[router] = [0.0] * len(load)
        return counts

    def run(self, *found: Expected, **more: Any) -> Run:
        """The run; by default the rate is in its header."""
        balance = {"method": "bias", "bias_update_rate": self.rate, "update": "sign"}
        more["header"] = {"balance": balance} | more.get("header", {})
        course = Course(popularity=self.weights, meter=self.update, bias_update_rate=None)
        run = run_of(self.shape, self.rng, course, *found, **more)
        return replace(run, steps=map(self._with_bias, run.steps)) if self.logged else run

    def _with_bias(self, step: Any) -> Any:
        rows = [[round(bias, 7) for bias in row] for row in self.routed_with]
        return replace(step, expert_bias=rows)


def drifting(shape: Shape, rng: random.Random, onset: int, target: float) -> Weight:
    """Data that from ``onset`` on make an even router uneven, within a hundred steps."""
    drawn = [[rng.gauss(0, 1) for _ in range(shape.num_experts)] for _ in range(shape.routers)]
    logs = [scaled_to(row, shape, target) for row in drawn]
    return lambda r, e, step: math.exp(logs[r][e] * min(1.0, max(0, step - onset) / 100))


def in_turn(shape: Shape, rng: random.Random, target: float) -> Weight:
    """Two to four sources take turns, with a period of up to 12 steps; each likes other experts."""
    sources = rng.randint(2, 4)
    holds, liked = rng.randint(1, 12 // sources), list[Rows]()
    for _ in range(shape.routers):
        group = groups_of(shape.num_experts, sources, rng)
        rows = [[rng.gauss(g == source, 0.15) for g in group] for source in range(sources)]
        liked.append([list(map(math.exp, scaled_to(row, shape, target))) for row in rows])
    return lambda router, e, step: liked[router][step // holds % sources][e]


def settles(shape: Shape, rng: random.Random) -> Run:
    """A healthy loop, even soon."""
    return Loop(shape, rng, rng.uniform(0.5, 0.8)).run()


def settles_late(shape: Shape, rng: random.Random) -> Run:
    """It begins at c 0.2 to 0.4 and is even by step 280."""
    loop = Loop(shape, rng, rng.uniform(0.2, 0.4))
    widest = max(max(row) - min(row) for row in loop.scores)
    loop.rate = SPREAD * widest / rng.uniform(300, 500)
    return loop.run()


def sign_of_some(shape: Shape, rng: random.Random, flip: Sequence[int] = ()) -> Run:
    """In one layer or two, at most in half of them, the update has the wrong sign."""
    number = rng.randint(1, min(2, max(1, shape.routers // 2)))
    wrong = tuple(sorted(rng.sample(range(shape.routers), number)))
    loop = Loop(shape, rng, rng.uniform(0.5, 0.8), wrong=sorted({*wrong} ^ {*flip}))
    fallen = Expected(rule="COLLAPSE", routers=wrong, severity="crit", tolerance=_LATE)
    run = loop.run(LINT, fallen, cause="sign", allowed=_BESIDE)
    return advised(run, "".join(rf"(?=.*\bl{r + 1}\b)" for r in wrong), "raise")


def never_moves(shape: Shape, rng: random.Random, called: bool = False) -> Run:
    """The update of the bias is never called."""
    loop = Loop(shape, rng, rng.uniform(0.3, 0.7), moves=lambda step: called)
    return advised(loop.run(LINT, allowed=_BESIDE), "did not change.*call", "raise|start again")


def stands_still(shape: Shape, rng: random.Random) -> Run:
    """The bias moved, stands now, and new data make the layers uneven."""
    onset = around(0.4 * shape.steps, rng)
    data = drifting(shape, rng, onset, rng.uniform(0.4, 0.65))
    loop = Loop(shape, rng, moves=lambda step: step < onset, data=data)
    run = loop.run(replace(LINT, onset=onset), allowed=_BESIDE)
    return advised(run, "did not change.*bf16", "raise")


def annealed(shape: Shape, rng: random.Random) -> Run:
    """The bias stands at the end, and the load is even: its rate was annealed to zero."""
    onset = around(0.4 * shape.steps, rng)
    return advised(Loop(shape, rng, moves=lambda step: step < onset).run(), never="bf16.*raise")


def evaluated(shape: Shape, rng: random.Random) -> Run:
    """An evaluation on uneven data: nothing updates a bias there."""
    loop = Loop(shape, rng, rng.uniform(0.6, 0.8), moves=lambda step: False)
    return loop.run(header={"profile": "eval"})


def sources_in_turn(shape: Shape, rng: random.Random) -> Run:
    """Sources take turns, and the logged bias cannot follow them."""
    loop = Loop(shape, rng, data=in_turn(shape, rng, rng.uniform(0.5, 0.9)))
    return advised(loop.run(allowed={"STARVED": "warn"}), never="too high|lower ")


def mild_sources(shape: Shape, rng: random.Random) -> Run:
    """The same where no bias is logged, and every step is nearly even."""
    loop = Loop(shape, rng, data=in_turn(shape, rng, rng.uniform(0.88, 0.95)), logged=False)
    return advised(loop.run(), never="too high|lower ")


def hidden_sources(shape: Shape, rng: random.Random) -> Run:
    """The same where every step is uneven: data or the bias, and no number for its rate."""
    data = in_turn(shape, rng, rng.uniform(0.45, 0.55))
    everywhere = tuple(range(shape.routers))
    found = Expected(rule="OSCILLATION", routers=everywhere, tolerance=_LATE)
    run = Loop(shape, rng, data=data, logged=False).run(found, allowed=_BESIDE)
    return advised(run, "alternat", r"from [\d.e-]+ to |lower bias")


def overshoots(shape: Shape, rng: random.Random) -> Run:
    """The bias swings by itself: its rate is too high, and it may be averaged over some steps."""
    late, everywhere = rng.randint(1, 4), tuple(range(shape.routers))
    loop = Loop(shape, rng, rate=rng.uniform(0.04, 0.08), late=late, logged=rng.random() < 0.5)
    found = Expected(rule="OSCILLATION", routers=everywhere, tolerance=_LATE)
    return loop.run(found, cause="too high", allowed=_BESIDE | {"OVERLOAD": "warn"})


def tiny_rate(shape: Shape, rng: random.Random, rate: float = 1e-5) -> Run:
    """The bias grows straight on, far too slowly."""
    everywhere = tuple(range(shape.routers))
    found = Expected(rule="COLLAPSE", routers=everywhere, tolerance=_LATE)
    run = Loop(shape, rng, 0.2, rate, spread=2 * SPREAD).run(found, allowed=_BESIDE)
    return advised(run, r"to (1e-04|0\.0001)\b", r"3e-05")


def lost_at_resumes(shape: Shape, rng: random.Random) -> Run:
    """Every restart loses the bias, and the loop learns it again."""
    resets = [around(share * shape.steps, rng) for share in (0.25, 0.5, 0.75)]
    loop = Loop(shape, rng, rng.uniform(0.3, 0.5), resets=resets)

    def edit(records: Iterator[Record]) -> Iterator[Record]:
        header: Record = {}
        for record in records:
            header = header or record
            if record["kind"] == "step" and record["step"] in resets:
                yield header | {"time": record["time"], "resumed_at_step": record["step"]}
            yield record

    found = replace(LINT, onset=resets[0])
    run = loop.run(found, cause="lost", allowed=_BESIDE, edit=edit)
    return advised(run, "save the bias with the model", "nothing now")
