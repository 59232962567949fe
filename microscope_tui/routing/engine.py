"""What an inference engine returned as ``routed_experts``, as a ``routing.bin``.

Read are a ``.npy`` of integers [tokens, layers, k], and JSON lines of responses: vLLM's nested
lists (``prompt_routed_experts`` and ``routed_experts`` [tokens][layers][k]) and SGLang's base64 of
int32 in ``meta_info``. Layers without MoE hold -1 and are dropped. Nothing routes the last sampled
token: engines leave it out or fill it with zeros, which are not expert 0, so it stays empty here.
"""

from array import array
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from microscope_tui.routing.layout import MOST_EXPERTS, MOST_LAYERS, BadRouting, Shape
from microscope_tui.routing.npy import BadArray, IntegerArray
from microscope_tui.routing.responses import BadResponse, Beside, Response, responses
from microscope_tui.routing.write import RoutingWriter

SUFFIXES = (".jsonl", ".npy")
_ROWS_AT_ONCE = 4096
_NONE = -1


class BadEngineOutput(ValueError):
    """It cannot be read as routed experts; the message says where and why."""


@dataclass(frozen=True, slots=True)
class Converted:
    """An engine's output as a file."""

    path: Path
    has_token_ids: bool


def convert(path: Path, target: Path, beside: Beside | None = None) -> Converted:
    """Write ``target`` from an engine's output.

    Args:
        beside: the probe that it is compared with. Without it the depths are those of the engine's
            layers, and the number of experts is unknown.

    Raises:
        OSError: a file cannot be read or written.
        BadEngineOutput: it has another form, or choices that the model of ``beside`` cannot make.
    """
    try:
        source = _Array(path) if path.suffix == ".npy" else _Lines(path, beside)
        with closing(source):
            return _written(source, target, beside)
    except (BadArray, BadResponse, BadRouting) as error:
        raise BadEngineOutput(f"{path}: {error}") from None


def _written(source: "_Array | _Lines", target: Path, beside: Beside | None) -> Converted:
    tokens, layers, k = source.shape
    if not (0 < layers <= MOST_LAYERS and tokens and k):
        raise BadResponse(f"{tokens:,} tokens, {layers:,} layers, k {k:,}: nothing to compare")
    kept = _moe_layers(source, layers, k, beside)
    depths, names = _places(kept, layers, beside)
    experts = beside.num_experts if beside is not None else MOST_EXPERTS
    writer = RoutingWriter(target, Shape(depths, names, experts, k, tokens))
    try:
        for ids, rows in source.pieces():
            count = len(rows) // (layers * k)
            zeros = [0] * count
            first = writer.put_tokens(ids or zeros, [b""] * count, zeros, zeros)
            for place, layer in enumerate(kept):
                packed = _packed(rows, layer, layers, k, experts, writer.empty_slot)
                writer.put("ids", place, first, packed)
        writer.finish()
    except BaseException:
        writer.abandon()
        raise
    return Converted(target, source.has_token_ids)


def _moe_layers(source: "_Array | _Lines", layers: int, k: int, beside: Beside | None) -> list[int]:
    """The layers that chose an expert for any of the first tokens."""
    _, rows = next(source.pieces())
    if beside is not None and len(beside.depths) == layers:
        return list(range(layers))
    kept = [
        layer for layer in range(layers) if max(rows[layer * k :: layers * k], default=-1) > _NONE
    ]
    return kept or list(range(layers))


def _places(
    kept: Sequence[int], layers: int, beside: Beside | None
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Depths and names: those of the probe where the number of layers agrees."""
    if beside is not None and len(beside.depths) in (layers, len(kept)):
        return tuple(beside.depths), tuple(beside.names)
    return tuple(kept), tuple(f"L{layer}" for layer in kept)


def _packed(
    rows: Sequence[int], layer: int, layers: int, k: int, experts: int, empty: int
) -> bytes:
    """The ids of one layer, with -1 as the empty slot behind the others."""
    stride = layers * k
    slots = [rows[layer * k + slot :: stride] for slot in range(k)]
    low, high = min(map(min, slots)), max(map(max, slots))
    if low < _NONE or high >= experts:
        wrong = low if low < _NONE else high
        raise BadResponse(
            f"expert {wrong:,} in layer {layer}: expected 0 to {experts - 1:,}, or -1"
        )
    code = "B" if empty == 0xFF else "H"
    # Nothing chooses one expert twice: zeros in all slots are a token without a route.
    unrouted = k > 1 and 0 in map(max, zip(*slots, strict=True))
    if low == _NONE or unrouted:
        rows_of = zip(*slots, strict=True)
        chosen = (
            sorted(row, key=_NONE.__eq__) if k == 1 or any(row) else [_NONE] * k for row in rows_of
        )
        return array(
            code, [empty if one == _NONE else one for row in chosen for one in row]
        ).tobytes()
    ids = array(code, bytes(len(slots[0]) * k * array(code).itemsize))
    for slot, values in enumerate(slots):
        ids[slot::k] = array(code, values)
    return ids.tobytes()


class _Array:
    """A ``.npy`` of one sequence of tokens without ids."""

    has_token_ids = False

    def __init__(self, path: Path) -> None:
        self._array = IntegerArray(path)
        self.shape = self._array.shape

    def close(self) -> None:
        self._array.close()

    def pieces(self) -> Iterator[tuple[None, Sequence[int]]]:
        tokens, layers, k = self.shape
        for start in range(0, tokens, _ROWS_AT_ONCE):
            end = min(start + _ROWS_AT_ONCE, tokens)
            rows = self._array.rows(start, end)
            yield None, _without_last(rows, layers * k) if end == tokens else rows


class _Lines:
    """JSON lines of responses, one sequence after the other; the file is read twice."""

    def __init__(self, path: Path, beside: Beside | None) -> None:
        self._path, self._beside = path, beside
        tokens, self.has_token_ids = 0, True
        layers = k = 0
        for number, response in responses(path, beside):
            if (layers, k) != (0, 0) and (layers, k) != (response.layers, response.k):
                raise BadResponse(
                    f"line {number:,}: {response.layers} layers and k {response.k}, before "
                    f"{layers} and {k}"
                )
            layers, k = response.layers, response.k
            tokens += response.tokens
            self.has_token_ids = self.has_token_ids and response.token_ids is not None
        self.shape = (tokens, layers, k)

    def close(self) -> None:
        pass  # every pass closes its own file

    def pieces(self) -> Iterator[tuple[Sequence[int] | None, Sequence[int]]]:
        for _, response in responses(self._path, self._beside):
            yield response.token_ids, _padded(response)


def _padded(response: Response) -> Sequence[int]:
    """The rows of all its tokens; -1 where none was returned."""
    width = response.layers * response.k
    given = len(response.rows) // width
    whole = response.before + given == response.tokens
    rows = _without_last(response.rows, width) if whole else response.rows
    if response.before or len(rows) < response.tokens * width:
        behind = response.tokens * width - response.before * width - len(rows)
        return [_NONE] * (response.before * width) + list(rows) + [_NONE] * behind
    return rows


def _without_last(rows: Sequence[int], width: int) -> Sequence[int]:
    """-1 in the last row if it is all zeros or empty: the last sampled token has no route."""
    last = rows[len(rows) - width :]
    if any(one > 0 for one in last):
        return rows
    return [*rows[: len(rows) - width], *[_NONE] * width]
