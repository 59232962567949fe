"""Run logs of any size at the speed of the disk: for what only a large log shows.

A small pool of rows of counts is drawn and encoded once, summaries included; a line is joined from
encoded pieces, so that 58 routers × 256 experts × 100,000 steps take seconds, not hours. Every
line is a valid record: rows sum to tokens × k, and summaries are exactly those of their counts.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from microscope_tui import measures
from microscope_tui.runlog import RunHeader, encode_record
from microscope_tui.scenarios import draw_counts

STARTED = 1_790_000_000.0
CHECKPOINT_EVERY = 1_000
_POOL = 32  # rows drawn for healthy routers, shared by all of them
_VARIANTS = 16  # ready-made pieces of every block of routers
_BLOCK = 8  # routers that one piece covers
_FALL_STAGES, _STAGE_STEPS = 12, 5  # a collapse takes 60 steps
_LINES_PER_WRITE = 16

_SUMMARIES = (
    "entropy", "mean_entropy", "effective_experts", "max_load", "dead_experts", "starved_experts",
    "z_loss", "max_logit", "grad_norm", "selected_mass", "margin",
)  # fmt: skip
_OPENINGS = (
    b'"router":{"entropy":[',
    *(f'],"{name}":['.encode() for name in _SUMMARIES[1:]),
    b']},"expert_bias":[',
    b'],"tokens_per_expert":[',
)
"""The text before each column of a line: the summaries, then the two matrices."""

_Columns = tuple[bytes, ...]
"""The encoded values of some routers, one entry per column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkPlan:
    """One bulk log. The same plan gives the same bytes."""

    routers: int = 58
    num_experts: int = 256
    top_k: int = 8
    tokens: int = 16384
    steps: int = 100_000
    seed: int = 0
    collapse: tuple[int, int] | None = None
    """The router that falls onto k experts, and the step at which it starts to fall."""
    tail: Sequence[float] = ()
    """Weights of a few experts of every router; those of the others are about 1."""
    spikes: Mapping[int, float] = field(default_factory=dict)
    """Step → loss; not repeated after a restart, as when the batch is skipped."""
    restarts: Sequence[tuple[int, int]] = ()
    """After which written step → the step that is written next, below a new run record."""
    finished: bool = True
    started: float = STARTED
    step_time_s: float = 1.0
    run: str = "bulk"

    def __post_init__(self) -> None:
        if not 0 < self.top_k <= self.num_experts:
            raise ValueError(f"top_k {self.top_k} must be in 1 … {self.num_experts} experts")
        if min(self.routers, self.tokens, self.steps) < 1:
            raise ValueError("routers, tokens and steps must be at least 1")
        if self.collapse is not None and not 0 <= self.collapse[0] < self.routers:
            raise ValueError(f"collapse in router {self.collapse[0]}: there are {self.routers}")

    @property
    def attempts(self) -> list[range]:
        """The steps that are written, in order, one range from restart to restart."""
        firsts = [1, *(back_to for _, back_to in self.restarts)]
        lasts = [*(after for after, _ in self.restarts), self.steps]
        return [range(a, b + 1) for a, b in zip(firsts, lasts, strict=True)]

    def loss(self, attempt: int, step: int) -> float:
        """The loss of a step: another one in another attempt, which repeats no spike."""
        is_first = all(step not in steps for steps in self.attempts[:attempt])
        if step in self.spikes and is_first:
            return self.spikes[step]
        hashed = 43758.5453 * math.sin(12.9898 * step + 78.233 * (attempt + 1) + self.seed)
        noise = hashed - math.floor(hashed)
        return round(1.37 + 3.0 * math.exp(-4.0 * step / self.steps) + 0.06 * noise, 5)


def write_bulk(path: Path, **options: Any) -> None:
    """Append a whole run, a :class:`BulkPlan` of these options, to ``path``."""
    every = bulk_lines(**options)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        while batch := b"".join(islice(every, _LINES_PER_WRITE)):
            file.write(batch)


def bulk_lines(**options: Any) -> Iterator[bytes]:
    """The same run line by line, newline included, for a writer with a pace of its own."""
    return _lines(BulkPlan(**options))


def _lines(plan: BulkPlan) -> Iterator[bytes]:
    rng = random.Random(plan.seed)
    blocks = _blocks(plan, rng)
    now = plan.started
    for attempt, steps in enumerate(plan.attempts):
        yield encode_record(_header(plan, now, steps.start if attempt else None))
        for step in steps:
            now += plan.step_time_s
            yield _step_line(plan, step, now, plan.loss(attempt, step), blocks, rng)
            if step % CHECKPOINT_EVERY == 0:
                yield encode_record(_event("checkpoint", step, now))
    if plan.finished:
        yield encode_record(_event("end", plan.steps, now) | {"reason": "finished"})


def _event(name: str, step: int, now: float) -> dict[str, object]:
    return {"kind": "event", "step": step, "time": now, "event": name}


def _step_line(
    plan: BulkPlan, step: int, now: float, loss: float, blocks: list["_Block"], rng: random.Random
) -> bytes:
    rate = 1e-3 * min(1.0, step / 100) * 0.5 * (1 + math.cos(math.pi * step / plan.steps))
    pieces = [
        f'{{"kind":"step","step":{step},"time":{now:.3f},"loss":{loss},'
        f'"learning_rate":{rate:.6g},"grad_norm":{0.8 + 0.2 * rng.random():.4f},'
        f'"tokens":{plan.tokens},"tokens_per_s":{plan.tokens / plan.step_time_s:.1f},'
        f'"step_time_s":{plan.step_time_s:.4g},'.encode()
    ]
    chosen = [block.at(step, rng) for block in blocks]
    for opening, column in zip(_OPENINGS, zip(*chosen, strict=True), strict=True):
        pieces.append(opening)
        pieces.append(b",".join(column))
    pieces.append(b"]}\n")
    return b"".join(pieces)


@dataclass(frozen=True, slots=True)
class _Block:
    """Neighbouring routers, with a choice of ready-made columns for all of them."""

    healthy: list[_Columns]
    onset: int | None = None
    falling: Sequence[_Columns] = ()
    """From the onset on: the stages of the fall, two of each, then what is drawn for ever."""

    def at(self, step: int, rng: random.Random) -> _Columns:
        draw = int(rng.random() * _VARIANTS) // 2 * 2 + step % 2  # never the same twice in a row
        if self.onset is None or step < self.onset:
            return self.healthy[draw]
        stage = (step - self.onset) // _STAGE_STEPS
        settled = len(self.falling) - 2 * _FALL_STAGES
        place = 2 * stage + step % 2
        return self.falling[place if stage < _FALL_STAGES else 2 * _FALL_STAGES + draw % settled]


def _blocks(plan: BulkPlan, rng: random.Random) -> list[_Block]:
    skill = [rng.gauss(0, 1) for _ in range(plan.num_experts)]
    pool = [_draw(plan, skill, 0.0, (), rng) for _ in range(_POOL)]
    sick, onset = plan.collapse or (None, None)
    blocks, start = [], 0
    while start < plan.routers:
        stop = min(start + _BLOCK, plan.routers)
        if sick is not None and start <= sick < stop:
            stop = sick if start < sick else sick + 1
        healthy = [
            _joined([_healthy_row(plan, pool[n % 2 :: 2], r, rng) for r in range(start, stop)])
            for n in range(_VARIANTS)
        ]
        if start == sick:
            blocks.append(_Block(healthy, onset, _falling(plan, skill, rng)))
        else:
            blocks.append(_Block(healthy))
        start = stop
    return blocks


def _healthy_row(
    plan: BulkPlan, pool: list[list[int]], router: int, rng: random.Random
) -> _Columns:
    row = rng.choice(pool)
    turn = router * 37 % plan.num_experts  # the same drawing, but not the same popular experts
    return _encoded(plan, row[turn:] + row[:turn], rng)


def _falling(plan: BulkPlan, skill: list[float], rng: random.Random) -> list[_Columns]:
    chosen = rng.sample(range(plan.num_experts), plan.top_k)
    pulls = [9.0 * (n // 2 + 1) / _FALL_STAGES for n in range(2 * _FALL_STAGES)]
    pulls += [9.0] * (_VARIANTS - _FALL_STAGES)
    return [_encoded(plan, _draw(plan, skill, pull, chosen, rng), rng) for pull in pulls]


def _draw(
    plan: BulkPlan, skill: list[float], pull: float, chosen: Sequence[int], rng: random.Random
) -> list[int]:
    weights = [math.exp(0.08 * s + rng.gauss(0, 0.04)) for s in skill]
    for expert in chosen:
        weights[expert] *= math.exp(pull)
    for expert, weight in enumerate(plan.tail):
        weights[expert] *= weight
    return draw_counts(weights, plan.tokens, plan.top_k, rng)


def _encoded(plan: BulkPlan, counts: list[int], rng: random.Random) -> _Columns:
    """One router's entry of every column."""
    mean_entropy = measures.load_entropy(counts) or 0.0
    values = {
        "entropy": round(0.7 * mean_entropy, 5),
        "mean_entropy": mean_entropy,
        **{name: column[0] for name, column in measures.summarise([counts]).items()},
        "z_loss": round(0.8 + 0.02 * rng.random(), 5),
        "max_logit": round(3.1 + 0.1 * rng.random(), 5),
        "grad_norm": round(0.02 + 0.002 * rng.random(), 5),
        "selected_mass": round(0.6 + 0.01 * rng.random(), 5),
        "margin": round(0.04 + 0.002 * rng.random(), 5),
    }
    return (
        *(msgspec.json.encode(values[name]) for name in _SUMMARIES),
        b"[]",  # no bias
        msgspec.json.encode(counts),
    )


def _joined(rows: Sequence[_Columns]) -> _Columns:
    return tuple(b",".join(column) for column in zip(*rows, strict=True))


def _header(plan: BulkPlan, now: float, resumed_at_step: int | None) -> dict[str, object]:
    depths = list(range(3, 3 + plan.routers))
    return RunHeader(
        run=plan.run,
        time=now,
        planned_steps=plan.steps,
        resumed_at_step=resumed_at_step,
        model={
            "name": "synthetic",
            "layers": depths,
            "layer_names": [f"L{depth}" for depth in depths],
            "num_experts": plan.num_experts,
            "top_k": plan.top_k,
            "num_shared_experts": 1,
            "score_function": "sigmoid",
            "norm_top_k": True,
            "capacity_factor": None,
        },
        balance={"method": "aux", "aux_weight": 0.001},
        source={"writer": "moe-microscope bulk", "counts": "exact"},
    ).to_json()
