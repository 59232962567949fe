"""Remedies that name a setting, followed: the twin of a sick run takes the advice of its report."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

from benchmarks.scenarios import KNOBS
from benchmarks.scoreboard.judging import Judged, judge
from benchmarks.scoreboard.plan import Case
from microscope_tui.diagnosis import Severity, report
from microscope_tui.scenarios import Shape

_LONGER = 3  # a rate that is raised tenfold needs its time


def _flipped(text: str) -> dict[str, Any]:
    named = [int(depth) - 1 for depth in re.findall(r"\bl(\d+)\b", text)]
    return {"flip": named or range(64)} if "flip the sign" in text else {}


def _raised(text: str) -> dict[str, Any]:
    found = re.search(r"raise \S+ from \S+ to ([\d.e-]+\d)", text)
    return {"rate": float(found[1])} if found else {}


FOLLOWED: dict[str, Callable[[str], dict[str, Any]]] = {
    "sign-of-some": _flipped,
    "bias-never-moves": lambda text: {"called": "call the bias update" in text},
    "tiny-rate": _raised,
}
"""Kind → what its twin changes after the first line of the report."""


def show_remedies(shapes: Sequence[str], seeds: range) -> int:
    """Judge every sick run and its twin; print both and return how many twins are still sick."""
    still_sick = 0
    for case in (Case(kind, *run) for kind in FOLLOWED for run in product(shapes, seeds)):
        known, (experts, top_k) = KNOBS[case.scenario], map(int, case.shape.split("/"))
        shape = Shape(routers=4, num_experts=experts, top_k=top_k, steps=known.steps)
        sick = judge(case, known, shape)
        _, advice = report(sick.diagnosis)[0]
        text = f"{advice.cause} {advice.verdict}. {advice.why} {advice.next}"
        change = FOLLOWED[case.scenario](text.lower())
        twin = replace(known, build=partial(known.build, **change))
        left = _active(judge(case, twin, replace(shape, steps=_LONGER * known.steps)))
        still_sick += bool(left)
        print(f"{case.scenario} {case.shape} {case.seed}: {_active(sick)}: {advice.next}")
        print(f"  the twin with {change}: {left or 'nothing is wrong at its end'}")
    return still_sick


def _active(judged: Judged) -> str:
    wrong = {e.rule for e in judged.episodes if e.active and e.severity >= Severity.WARN}
    return ", ".join(sorted(wrong))
