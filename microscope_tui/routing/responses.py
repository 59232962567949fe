"""JSON lines of an engine's responses with ``routed_experts``; see ``engine.py``."""

import base64
import binascii
import os
import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import msgspec

from microscope_tui.runlog import open_regular_file, safe_text

_MOST_LINE = 64 << 20
_Rows = list[list[list[int]]]
_Ids = list[int]


class BadResponse(ValueError):
    """A line is not a response with routed experts; the message says where and why."""


class _Meta(msgspec.Struct):
    routed_experts: str | _Rows | None = None


class _Choice(msgspec.Struct):
    token_ids: _Ids | None = None
    routed_experts: _Rows | None = None


class _Line(msgspec.Struct):
    prompt_token_ids: _Ids | None = None
    input_ids: _Ids | None = None
    token_ids: _Ids | None = None
    output_ids: _Ids | None = None
    output_token_ids: _Ids | None = None
    prompt_routed_experts: _Rows | None = None
    routed_experts: str | _Rows | None = None
    meta_info: _Meta | None = None
    choices: list[_Choice] | None = None


@dataclass(frozen=True, slots=True)
class Beside:
    """What a probe of the same tokens says about the model."""

    depths: Sequence[int]
    names: Sequence[str]
    num_experts: int
    top_k: int

    def may_have(self, layers: int) -> bool:
        """Whether an engine may return so many layers: those with MoE, or all of them."""
        return layers == len(self.depths) or layers > max(self.depths)


@dataclass(frozen=True, slots=True)
class Response:
    """One sequence of tokens."""

    tokens: int
    token_ids: Sequence[int] | None
    layers: int
    k: int
    rows: Sequence[int]
    """Flat: token, layer, slot."""
    before: int
    """Tokens of the prompt in front of the first row."""


def responses(path: Path, beside: Beside | None) -> Iterator[tuple[int, Response]]:
    """The responses with their line numbers.

    Args:
        beside: needed for base64, which holds no shape.

    Raises:
        OSError: the file cannot be read.
        BadResponse: a line is not a response, or too long.
    """
    decoder = msgspec.json.Decoder(_Line)
    with os.fdopen(open_regular_file(path), "rb") as file:
        number = 0
        while line := file.readline(_MOST_LINE + 1):
            number += 1
            if len(line) > _MOST_LINE:
                raise BadResponse(
                    f"line {number:,}: longer than {_MOST_LINE >> 20} MB; write one response a line"
                )
            if not line.strip():
                continue
            try:
                yield number, _response(decoder.decode(line), beside)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise BadResponse(f"line {number:,}: {safe_text(error, 160)}") from None
            except BadResponse as error:
                raise BadResponse(f"line {number:,}: {error}") from None
    if not number:
        raise BadResponse("is empty")


def _response(line: _Line, beside: Beside | None) -> Response:
    choice = _only_choice(line)
    prompt = line.prompt_token_ids if line.prompt_token_ids is not None else line.input_ids
    output = next(
        (
            ids
            for ids in (choice.token_ids, line.token_ids, line.output_ids, line.output_token_ids)
            if ids is not None
        ),
        None,
    )
    ids = None if prompt is output is None else [*(prompt or ()), *(output or ())]
    if ids is not None and not all(0 <= one < 1 << 32 for one in ids):
        raise BadResponse("a token id is negative or above 4,294,967,295")
    experts = line.routed_experts
    if experts is None:
        experts = choice.routed_experts
    if experts is None and line.meta_info is not None:
        experts = line.meta_info.routed_experts
    if isinstance(experts, str):
        if beside is None or ids is None:
            raise BadResponse("base64 holds no shape: it needs token ids, and a probe beside it")
        return _placed(_from_base64(experts), beside.top_k, ids, len(prompt or ()), beside=beside)
    nested = [*(line.prompt_routed_experts or ()), *(experts or ())]
    if not nested or not nested[0] or not nested[0][0]:
        raise BadResponse("no routed_experts; ask the engine to return them")
    layers, k = len(nested[0]), len(nested[0][0])
    if any(len(row) != layers or any(len(one) != k for one in row) for row in nested):
        raise BadResponse(f"rows differ in size; the first has {layers} layers of {k}")
    flat = list(chain.from_iterable(chain.from_iterable(nested)))
    return _placed(flat, k, ids, len(prompt or ()), layers=layers)


def _only_choice(line: _Line) -> _Choice:
    if line.choices and len(line.choices) > 1:
        raise BadResponse(f"{len(line.choices)} choices: ask for one a request (n = 1)")
    return line.choices[0] if line.choices else _Choice()


def _from_base64(text: str) -> "array[int]":
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadResponse("routed_experts is not base64") from None
    if len(raw) % 4:
        raise BadResponse(f"routed_experts has {len(raw):,} bytes, not whole int32 numbers")
    numbers = array("i", raw)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _placed(
    flat: Sequence[int],
    k: int,
    ids: Sequence[int] | None,
    prompt: int,
    *,
    layers: int = 0,
    beside: Beside | None = None,
) -> Response:
    """Which tokens the rows belong to: all, all but the last, or the same without the prompt.

    The layers are given, or follow from the number of tokens and what ``beside`` allows.
    """
    if ids is None:
        return Response(len(flat) // (layers * k), None, layers, k, flat, 0)
    total = len(ids)
    places = ((total, 0), (total - 1, 0), (total - prompt, prompt), (total - prompt - 1, prompt))
    for count, before in places:
        if count <= 0 or not flat or len(flat) % (count * k):
            continue
        found = len(flat) // (count * k)
        if found == layers or (beside is not None and beside.may_have(found)):
            return Response(total, ids, found, k, flat, before)
    raise BadResponse(
        f"{len(flat):,} choices for {total:,} token ids: expected one row per token, with or "
        "without the last one"
    )
