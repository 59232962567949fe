"""What a reader made of a log, in a form that can be compared, and texts that may not hurt."""

import math
import re
import unicodedata
from array import array
from dataclasses import astuple, is_dataclass
from typing import Any

import msgspec

from microscope_tui.runlog import StepEntry
from microscope_tui.watch import History, RunWatch

_FORBIDDEN = frozenset({"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"})
_MARKS = re.compile(r"[\u0300-\u036f\u0483-\u0489\ufe00-\ufe0f]{3,}")


def hurts(text: str) -> str | None:
    """What in ``text`` a terminal could obey or stumble over; newlines are allowed."""
    if not text.replace("\n", "").isprintable():
        for char in text:
            if char != "\n" and unicodedata.category(char) in _FORBIDDEN:
                return f"U+{ord(char):04X} in {text!r}"
    if _MARKS.search(text):
        return f"combining marks in {text!r}"
    return None


def outcome(watch: RunWatch) -> dict[str, Any]:
    """Everything that is shown of a run; equal for two readers that saw the same file."""
    scan, diagnosis = watch.scan, watch.diagnosis
    if watch.error is not None:
        return {"error": watch.error}  # nothing else is shown of it
    return {
        "complete": watch.complete,
        "run": scan.run,
        "latest": step_of(scan.latest),
        "with_counts": step_of(scan.with_counts),
        "end": plain(scan.end),
        "lost_records": scan.lost_records,
        "evaluations": plain(list(scan.evaluations)),
        "intervals": list(scan.intervals),
        "history": history_of(scan.history),
        "episodes": plain(diagnosis.episodes) if diagnosis else None,
        "checkpoints": diagnosis.checkpoints if diagnosis else None,
        "judged": diagnosis.last_step if diagnosis else None,
    }


def history_of(history: History) -> Any:
    history.commit()
    curves = {
        name: [plain([curve.fine.low, curve.fine.mean, curve.fine.high]) for curve in router]
        for name, router in history._curves.items()
    }
    axis = [list(history.steps), list(history.offsets), history.restarts, history.last_step]
    return axis, history.stride, curves


def step_of(entry: StepEntry | None) -> Any:
    if entry is None:
        return None
    return plain(entry.record), entry.offset, entry.routers, plain(entry.matrices())


def plain(value: Any) -> Any:
    """``value`` in a form in which NaN equals NaN."""
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if is_dataclass(value) and not isinstance(value, type):
        return plain(astuple(value))
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | array):
        return [plain(item) for item in value]
    return value


def difference(one: dict[str, Any], other: dict[str, Any]) -> str:
    return "; ".join(
        f"{key}: {str(one[key])[:400]} is not {str(other.get(key))[:400]}"
        for key in one
        if one[key] != other.get(key)
    )
