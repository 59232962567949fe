"""The rows of ``mean_weight`` and ``mean_output_norm``, which few readers need.

A typed struct names only these two, so that everything else of the line is skipped.
"""

import math

import msgspec

from microscope_tui.runlog.records import Values

Rows = list[Values | None]
_Raw = list[list[float | str | None]]


class _Line(msgspec.Struct):
    mean_weight: _Raw | None = None
    mean_output_norm: _Raw | None = None


_decoder = msgspec.json.Decoder(_Line)


def decode_means(line: bytes, routers: int) -> tuple[Rows, Rows]:
    """Mean weight and mean output norm of every expert, a row per router.

    ``None`` where a row is absent; a value that is not a finite number is ``None`` too.
    """
    try:
        found = _decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        found = _Line()
    return _rows(found.mean_weight, routers), _rows(found.mean_output_norm, routers)


def _rows(raw: _Raw | None, routers: int) -> Rows:
    if raw is None or len(raw) != routers:
        return [None] * routers
    return [[_finite(value) for value in row] or None for row in raw]


def _finite(value: float | str | None) -> float | None:
    return value if isinstance(value, int | float) and math.isfinite(value) else None
