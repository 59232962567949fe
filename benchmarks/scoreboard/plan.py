"""Which runs are judged: scenarios × shapes × seeds, and what a seed makes of a shape."""

import hashlib
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from benchmarks.scenarios import SCENARIOS
from microscope_tui.scenarios import Shape

SHAPES = ("4/1", "8/1", "8/2", "64/8", "128/8", "256/8")
QUICK_SHAPES = ("8/2", "64/8")
LAYERS, TOKENS = (2, 58), (96, 16384)
EXPERT_STEPS = 4_000_000
"""Layers × experts × steps of one run: what it costs to draw and to judge."""
LEAST_PER_EXPERT = 4
"""Assignments that an expert can expect in a step; below, no step is evidence."""
_DRAWS = 300
_ROOT = Path(__file__).parents[2]
_CODE = (
    "microscope_tui/diagnosis",
    "microscope_tui/scenarios",
    "benchmarks/scenarios",
    "benchmarks/scoreboard",
)


@dataclass(frozen=True, slots=True)
class Case:
    """One run to judge. The same case is the same bytes for ever."""

    scenario: str
    shape: str
    """Experts and choices, ``64/8``."""
    seed: int


def cases(scenarios: Sequence[str], shapes: Sequence[str], seeds: range) -> Iterator[Case]:
    """Every case that makes sense; all of a seed before the next one."""
    for seed in seeds:
        for shape in shapes:
            for scenario in scenarios:
                case = Case(scenario, shape, seed)
                if drawn(case) is not None:
                    yield case


def drawn(case: Case) -> Shape | None:
    """Layers and tokens by the seed; ``None`` where the scenario fits no such shape."""
    scenario = SCENARIOS[case.scenario]
    experts, top_k = map(int, case.shape.split("/"))
    rng = random.Random(f"{case.scenario} {case.shape} {case.seed}")
    most = max(LAYERS[0], EXPERT_STEPS // (experts * scenario.steps))
    layers = (LAYERS[0], min(LAYERS[1], most))
    tokens = (max(TOKENS[0], math.ceil(LEAST_PER_EXPERT * experts / top_k)), TOKENS[1])
    for _ in range(_DRAWS):
        shape = Shape(
            routers=_log_uniform(*layers, rng),
            num_experts=experts,
            top_k=top_k,
            tokens=_log_uniform(*tokens, rng),
            steps=scenario.steps,
        )
        if scenario.fits(shape):
            return shape
    return None


@lru_cache(maxsize=1)
def fingerprint() -> str:
    """Of the code that makes, judges and scores the runs: other code, other scores."""
    digest = hashlib.sha256()
    for folder in _CODE:
        for path in sorted((_ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _log_uniform(low: int, high: int, rng: random.Random) -> int:
    return round(math.exp(rng.uniform(math.log(low), math.log(high))))
