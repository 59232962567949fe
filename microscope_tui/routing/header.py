"""The header of a ``routing.bin`` as it is stored: sizes, names, and the tables of the probe."""

from typing import Any

import msgspec

from microscope_tui.routing.layout import Tables


class Header(msgspec.Struct):
    """The fields, of any value: the reader checks them."""

    tokens: int
    capacity: int
    num_experts: int
    top_k: int
    layers: list[int]
    layer_names: list[str]
    text_bytes: int
    model: str = ""
    dtype: str = ""
    slices: list[str] = []
    tables: dict[str, Any] = {}


def tables_of(found: dict[str, Any]) -> Tables:
    """The tables; what has another form than it should is left out."""
    try:
        return msgspec.convert(found, Tables)
    except (msgspec.ValidationError, RecursionError):
        return Tables()
