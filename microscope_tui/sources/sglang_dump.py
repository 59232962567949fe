"""What one dump of SGLang's expert distribution recorder holds.

``stat`` and ``stat_approx`` write the counts of the buffered forward passes, summed over the ranks.
``per_pass`` and ``per_token`` write a file per rank with the counts of each *physical* expert: a
logical expert may have several copies. Layout: ``sglang/srt/eplb/expert_distribution.py``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from microscope_tui.sources import torch_file
from microscope_tui.sources.exact_bytes import Bytes
from microscope_tui.sources.keys import MAX_EXPERTS, MAX_LAYERS
from microscope_tui.sources.torch_file import Tensor

MOST_PASSES = 1 << 20
_MOST_COUNT = 2**40


@dataclass(frozen=True, slots=True)
class Stat:
    """Counts ``[passes, layers, logical experts]`` over all ranks; unused passes are zero."""

    counts: Tensor


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass on one rank."""

    number: int
    """``forward_pass_id``"""
    counts: Tensor
    """``[layers, physical experts]``"""
    choices: Tensor | None
    """Experts of each token ``[layers, tokens, choices]``, -1 for none; only in ``per_token``."""


@dataclass(frozen=True, slots=True)
class Detail:
    """The forward passes of one rank."""

    rank: int
    passes: Sequence[Pass]
    logical: Sequence[Sequence[int]]
    """The logical expert of each physical one ``[layers, physical experts]``."""


def load(data: Bytes) -> Stat | Detail:
    """Read a dump; the counts stay in the file.

    Raises:
        Unfinished, Unreadable: as ``torch_file.load``, or it is no such dump.
    """
    content = torch_file.load(data)
    if isinstance(content, dict) and "logical_count" in content:
        return Stat(_counts(data, content["logical_count"], 3))
    if isinstance(content, dict) and isinstance(content.get("records"), list):
        return _detail(data, content)
    raise data.broken(
        "not a dump of SGLang's expert distribution recorder: neither logical_count nor records"
    )


def rows_of(data: Bytes, counts: Tensor, *index: int) -> list[list[int]]:
    """The rows ``[layers][experts]`` of one forward pass.

    Raises:
        Unreadable: a count is negative or larger than any count can be.
    """
    flat = counts.numbers(data, *index)
    if flat and not 0 <= min(flat) <= max(flat) <= _MOST_COUNT:
        raise data.broken("a count is negative or too large; is it such a dump?")
    width = counts.shape[-1]
    return [flat[at : at + width] for at in range(0, len(flat), width)]


def by_logical(rows: Sequence[Sequence[int]], logical: Sequence[Sequence[int]]) -> list[list[int]]:
    """Counts per physical expert summed to counts per logical expert."""
    width = 1 + max(max(row) for row in logical)
    found = [[0] * width for _ in rows]
    for row, experts, summed in zip(rows, logical, found, strict=True):
        if any(row):
            for count, expert in zip(row, experts, strict=True):
                summed[expert] += count
    return found


def top_k_of(data: Bytes, choices: Tensor, layer: int) -> int | None:
    """The most experts that a token chose in one layer; ``None`` without a token.

    The recorder has room for eight choices; where there are fewer, the rest is -1.
    """
    ids = choices.numbers(data, layer)
    width = choices.shape[-1]
    tokens = (ids[at : at + width] for at in range(0, len(ids), width or 1))
    return max((sum(i >= 0 for i in token) for token in tokens), default=0) or None


def _detail(data: Bytes, content: dict[Any, Any]) -> Detail:
    found = content["records"]
    if len(found) > MOST_PASSES:
        raise data.broken(f"{len(found):,} forward passes, at most {MOST_PASSES:,} are read")
    if not found:
        return Detail(0, [], [])
    mapping = _counts(data, content.get("last_physical_to_logical_map"), 2)
    logical = rows_of(data, mapping)
    if max(map(max, logical)) >= MAX_EXPERTS:
        raise data.broken("last_physical_to_logical_map has experts that no model has")
    passes, ranks = [], set()
    for record in found:
        match record:
            case {"forward_pass_id": int(number), "rank": int(rank), "global_physical_count": t}:
                counts = _counts(data, t, 2)
            case _:
                raise data.broken("a record has no forward_pass_id, rank or global_physical_count")
        if counts.shape != mapping.shape or not 0 <= number < 2**62:
            raise data.broken(
                f"a record counts {counts.shape} experts, last_physical_to_logical_map has "
                f"{mapping.shape}; the dump is not consistent"
            )
        choices = record.get("topk_ids_of_layer")
        usable = isinstance(choices, Tensor) and choices.is_integer and len(choices.shape) == 3
        usable = usable and choices.shape[0] == counts.shape[0]
        passes.append(Pass(number, counts, choices if usable else None))
        ranks.add(rank)
    if len(ranks) > 1:
        raise data.broken(f"records of {len(ranks)} ranks in one file; a file holds one rank")
    return Detail(ranks.pop(), passes, logical)


def _counts(data: Bytes, value: Any, dimensions: int) -> Tensor:
    if not isinstance(value, Tensor) or not value.is_integer or len(value.shape) != dimensions:
        raise data.broken(f"the counts are not a tensor of integers with {dimensions} dimensions")
    layers, experts = value.shape[-2:]
    if not (0 < layers <= MAX_LAYERS and 0 < experts <= MAX_EXPERTS):
        raise data.broken(
            f"{layers:,} layers with {experts:,} experts; there must be some, and at most "
            f"{MAX_LAYERS:,} with {MAX_EXPERTS:,} are read"
        )
    return value
