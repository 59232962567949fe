"""Runs as data: tidy tables for pandas or a spreadsheet, and one JSON object with all of a view.

What was not measured is an empty cell, or null; a number that is not finite is written by its name.
Steps that a restart superseded are left out, so a run is read twice.
"""

import csv
import io
import math
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, repeat, zip_longest
from typing import Any, TextIO

import msgspec

from microscope_tui.diagnosis import value_at
from microscope_tui.draw.findings import finding_json
from microscope_tui.runlog import (
    Course,
    RouterSummary,
    RunFile,
    RunRecord,
    StepEntry,
    StepRecord,
    encode_record,
    entries_of,
    safe_text,
)
from microscope_tui.watch import LayerView, RunView, balance_now
from microscope_tui.watch.cost import Cost

_PLACE = ("run", "step", "router", "layer", "depth")
_STEP = ("time", "loss", "learning_rate", "grad_norm", "tokens", "tokens_per_s", "step_time_s")
_SUMMARIES = RouterSummary.__struct_fields__
ROUTER_COLUMNS = (*_PLACE, *_STEP, "balance", *(f"router.{name}" for name in _SUMMARIES))
EXPERT_COLUMNS = (*_PLACE, "expert", "tokens_per_expert", "expert_bias")
VIEW_COLUMNS = (
    *("run", "step", "counts_step", "router", "layer", "depth", "expert"),
    *("tokens", "load", "expert_bias"),
)
_FORMULA = "=+-@"
Cell = str | float | None
_INFINITE: Mapping[Cell, str] = {math.inf: "Infinity", -math.inf: "-Infinity"}
Row = Sequence[Cell]


def view_csv(view: RunView) -> str:
    """One row per layer and expert; two routers may have the same name.

    Tokens, load and bias are those of ``counts_step``. A layer without counts has no rows.
    """
    rows: list[Row] = []
    for layer in view.layers:
        router = layer.router
        of_layer = (view.name, view.step, view.counts_step, layer.index, router.name, router.depth)
        of_experts = zip_longest(layer.counts or (), layer.load or (), layer.bias or ())
        rows += [(*of_layer, expert, *values) for expert, values in enumerate(of_experts)]
    text = io.StringIO()
    write_csv(VIEW_COLUMNS, rows, text)
    return text.getvalue()


def view_json(view: RunView, cost: Cost | None = None) -> str:
    """The whole view as one line of JSON, findings with the keys of ``docs/check-json.md``.

    ``tokens_per_expert``, ``load`` and ``expert_bias`` are of ``counts_step``.
    """
    document: dict[str, Any] = {
        "schema_version": 2,
        "run": view.name,
        **_values(view, "step", "counts_step", "state"),
        "judged": view.judging.no_verdict is None,
        "judged_step": view.judging.last_step,
        **_scalars(view.record),
        "cost": msgspec.to_builtins(cost),
        "layers": [_layer(layer, view) for layer in view.layers],
        "findings": [finding_json(finding, advice) for finding, advice in view.findings],
    }
    return encode_record(document).decode()


def _values(thing: object, *names: str) -> dict[str, Any]:
    return {name: getattr(thing, name) for name in names}


def effective_experts(layer: LayerView, view: RunView) -> float | None:
    """How many equally used experts would be as uneven as ``layer``; ``None`` if unknown."""
    return value_at(view.record.router.effective_experts, layer.index) if view.record else None


def _layer(layer: LayerView, view: RunView) -> dict[str, Any]:
    router = layer.router
    return {
        "router": layer.index,
        "layer": router.name,
        "depth": router.depth,
        "num_experts": router.num_experts or None,
        "top_k": router.top_k or None,
        **_values(layer, "balance", "judged_balance"),
        "without_experts": layer.without,
        "effective_experts": effective_experts(layer, view),
        **_values(layer, "entropy", "mean_entropy", "max_load", "drop_rate"),
        "severity": layer.severity.label if layer.severity else None,
        **_values(layer, "quadrant", "load"),
        "tokens_per_expert": layer.counts,
        "expert_bias": layer.bias,
    }


def _scalars(record: StepRecord | None) -> dict[str, Any]:
    """All null before the first step."""
    names = [name for name in StepRecord.__struct_fields__ if name not in ("step", "router")]
    values = _values(record, *names) if record else dict.fromkeys(names)
    if values["losses"]:
        values["losses"] = {safe_text(name, 40): loss for name, loss in values["losses"].items()}
    return values


def write_csv(columns: Sequence[str], rows: Iterable[Row], file: TextIO) -> None:
    """Write a table with its heads; a spreadsheet runs none of its names as a formula."""
    table = csv.writer(file, lineterminator="\n")
    table.writerow(columns)
    table.writerows([_cell(value) for value in row] for row in rows)


def _cell(value: Cell) -> Cell:
    """Escape names that a spreadsheet would run as formulas."""
    if isinstance(value, str):
        # A full-width = is a formula as well.
        first = unicodedata.normalize("NFKC", value.lstrip()[:1])
        return f"'{value}" if first and first in _FORMULA else value
    if value is not None and math.isnan(value):
        return "NaN"
    return _INFINITE.get(value, value)


def rows_of(file: RunFile, *, experts: bool = False) -> Iterator[Row]:
    """The rows of a run, in the order of ``EXPERT_COLUMNS`` or ``ROUTER_COLUMNS``.

    Raises:
        OSError: the run cannot be read.
        UnknownFormat: the run has another format version.
    """
    for run, entry in surviving_steps(file):
        yield from _of_experts(run, entry) if experts else _of_routers(run, entry)


def surviving_steps(file: RunFile) -> Iterator[tuple[RunRecord, StepEntry]]:
    """The steps that no restart superseded, each with the header it was written under.

    The run is read twice. ``OSError``, ``UnknownFormat``: as ``rows_of``.
    """
    kept = iter(_surviving(file))
    run: RunRecord | None = None
    for entry in entries_of(file):
        if isinstance(entry, RunRecord):
            run = entry
        elif isinstance(entry, StepEntry) and next(kept, 0) and run is not None:
            yield run, entry


def _surviving(file: RunFile) -> bytearray:
    kept = bytearray()
    course = Course()
    steps, numbers = array("q"), array("q")  # of the records that survive so far
    for entry in entries_of(file):
        cut = course.take(entry)
        while cut is not None and steps and steps[-1] >= cut:
            kept[numbers.pop()] = 0
            steps.pop()
        if isinstance(entry, StepEntry):
            kept.append(not course.repeats)
            if not course.repeats:
                steps.append(entry.record.step)
                numbers.append(len(kept) - 1)
    return kept


def _of_routers(run: RunRecord, entry: StepEntry) -> Iterator[Row]:
    record, summary = entry.record, entry.record.router
    of_step = [getattr(record, name) for name in _STEP]
    for index, router in enumerate(run.routers):
        values = [getattr(summary, name) for name in _SUMMARIES]
        yield (
            *(run.run, record.step, index, router.name, router.depth),
            *of_step,
            balance_now(summary, index, router).balance,
            *(value_at(one, index) for one in values),
        )


def _of_experts(run: RunRecord, entry: StepEntry) -> Iterator[Row]:
    if not entry.has_counts:
        return
    matrices = entry.matrices()
    for index, router in enumerate(run.routers):
        place = (run.run, entry.record.step, index, router.name, router.depth)
        biases = chain(matrices.expert_bias[index] or (), repeat(None))
        counts = matrices.tokens_per_expert[index] or ()
        for expert, (count, bias) in enumerate(zip(counts, biases, strict=False)):
            yield (*place, expert, count, bias)
