"""Remedies that name a setting, followed: the twin of a sick run takes the advice of its report."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks.scenarios import KNOBS
from benchmarks.scoreboard.judging import Judged, judge
from benchmarks.scoreboard.plan import Case
from microscope_tui.diagnosis import Severity, report
from microscope_tui.scenarios import Shape

_TWIN_STEPS = 4  # times as long: a rate that is raised tenfold needs its time
_ALL = range(64)


def _flipped(text: str) -> dict[str, Any]:
    named = [int(depth) - 1 for depth in re.findall(r"\bL(\d+)\b", text)]
    return {"flip": (named or _ALL) if "flip the sign" in text.lower() else ()}


def _called(text: str) -> dict[str, Any]:
    return {"called": "call it" in text.lower()}


def _raised(text: str) -> dict[str, Any]:
    found = re.search(r"raise \S+ from [\d.e-]+ to ([\d.e-]+\d)", text.lower())
    return {"rate": float(found[1])} if found else {}


FOLLOWED: dict[str, Callable[[str], dict[str, Any]]] = {
    "sign-of-some": _flipped,
    "bias-never-moves": _called,
    "tiny-rate": _raised,
}
"""Kind → what its twin changes after the text of the first line."""


def show_remedies(shapes: Sequence[str], seeds: range) -> int:
    """Judge every sick run and its twin; print both and return how many twins are still sick."""
    still_sick = 0
    for kind, follow in FOLLOWED.items():
        for case in (Case(kind, shape, seed) for shape in shapes for seed in seeds):
            experts, top_k = map(int, case.shape.split("/"))
            steps = KNOBS[kind].steps
            shape = Shape(routers=4, num_experts=experts, top_k=top_k, steps=steps)
            sick = judge(case, KNOBS[kind], shape)
            _, advice = report(sick.diagnosis)[0]
            change = follow(f"{advice.cause} {advice.verdict}. {advice.why} {advice.next}")
            twin = replace(KNOBS[kind], build=partial(KNOBS[kind].build, **change))
            left = _active(judge(case, twin, replace(shape, steps=_TWIN_STEPS * steps)))
            still_sick += bool(left)
            print(f"{kind} {case.shape} {case.seed}: {_active(sick)}: {advice.next}")
            print(f"  the twin with {change}: {left or 'nothing is wrong at its end'}")
    return still_sick


def _active(judged: Judged) -> str:
    wrong = [e for e in judged.episodes if e.active and e.severity >= Severity.WARN]
    return ", ".join(sorted({e.rule for e in wrong}))
