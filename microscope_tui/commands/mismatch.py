"""``moe-microscope mismatch``: where two probes of the same tokens chose other experts."""

import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from microscope_tui.console import USAGE, fail, print_data
from microscope_tui.lines import glyphs_for
from microscope_tui.report import NO_VERDICT, described, mismatch_json, mismatch_report
from microscope_tui.routing import (
    FILE_NAME,
    SUFFIXES,
    BadEngineOutput,
    BadRouting,
    NotComparable,
    Routing,
    compare,
    convert,
)
from microscope_tui.routing.responses import Beside
from microscope_tui.runlog import encode_record, safe_text


def mismatch(
    a: Path,
    b: Path,
    /,
    *,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
    max_share: float | None = None,
) -> int:
    """Compare what was chosen for the same tokens: 0 compared, 1 too different, 3 not comparable.

    Parameters
    ----------
    a
        A probe: its folder or its routing.bin. Or what an engine returned as routed_experts: a
        .jsonl of responses, or a .npy of integers (tokens, layers, k).
    b
        The same, for the same tokens in the same order.
    as_json
        Print the comparison as JSON.
    max_share
        Exit with 1 if more than this share of the (token, layer) choices differs, for example
        0.1; by default any share is fine.
    """
    if max_share is not None and not 0 <= max_share <= 1:
        fail(f"--max-share {max_share:g}: write a share from 0 to 1", USAGE)
    with ExitStack() as opened:
        first, second = _both(a, b, opened)
        try:
            found = compare(
                *(side.routing for side in _margins_first(first, second)),
                token_ids=first.has_token_ids and second.has_token_ids,
                margins=not (first.engine and second.engine),
            )
        except NotComparable as error:
            fail(f"{a} and {b} cannot be compared: {error}", NO_VERDICT)
        if first.engine and not second.engine:
            found = found.turned()
        names = safe_text(a, 200), safe_text(b, 200)
        if as_json:
            print_data(encode_record(mismatch_json(found, *names)).decode().rstrip())
        else:
            sides = zip("AB", names, (first, second), strict=True)
            heads = [described(at, name, one.routing, engine=one.engine) for at, name, one in sides]
            text = mismatch_report(found, glyphs_for("auto", sys.stdout))
            print_data("\n".join([*heads, text]))
    return int(max_share is not None and found.share > max_share)


@dataclass(frozen=True, slots=True)
class _Side:
    routing: Routing
    engine: bool = False
    has_token_ids: bool = True


def _both(a: Path, b: Path, opened: ExitStack) -> tuple[_Side, _Side]:
    """Both sides; an engine's output is read with what the other side says about the model."""
    paths = [path / FILE_NAME if path.is_dir() else path for path in (a, b)]
    sides: dict[int, _Side] = {}
    try:
        for at, path in enumerate(paths):
            if path.suffix not in SUFFIXES:
                sides[at] = _Side(opened.enter_context(Routing(path)))
        beside = next((_beside(side.routing) for side in sides.values()), None)
        for at, path in enumerate(paths):
            if at not in sides:
                folder = opened.enter_context(tempfile.TemporaryDirectory(prefix="moe-microscope-"))
                done = convert(path, Path(folder) / FILE_NAME, beside)
                routing = opened.enter_context(Routing(done.path))
                sides[at] = _Side(routing, True, done.has_token_ids)
    except FileNotFoundError as error:
        fail(
            f"{error.filename}: no such file; make a probe with `moe-microscope probe MODEL TEXT`",
            NO_VERDICT,
        )
    except (BadRouting, BadEngineOutput) as error:
        fail(str(error), NO_VERDICT)
    except OSError as error:
        fail(f"{error.filename or ''}: {error.strerror or error}", NO_VERDICT)
    return sides[0], sides[1]


def _beside(probe: Routing) -> Beside:
    shape = probe.shape
    return Beside(shape.layers, shape.layer_names, shape.num_experts, shape.top_k)


def _margins_first(first: _Side, second: _Side) -> tuple[_Side, _Side]:
    return (second, first) if first.engine else (first, second)
