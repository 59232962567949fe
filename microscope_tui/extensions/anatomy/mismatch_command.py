"""``moe-microscope mismatch``: where two probes of the same tokens chose different experts."""

import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from microscope_tui.commands.console import (
    NO_VERDICT,
    USAGE,
    fail,
    print_data,
    print_record,
    say_size,
)
from microscope_tui.commands.options import AsJson, refuse_below
from microscope_tui.draw.glyphs import glyphs_for, spelled
from microscope_tui.draw.spans import plain
from microscope_tui.extensions.anatomy.as_json import mismatch_json
from microscope_tui.extensions.anatomy.compare import NotComparable, compare
from microscope_tui.extensions.anatomy.layout import BadRouting
from microscope_tui.extensions.anatomy.mismatch_text import mismatch_text
from microscope_tui.extensions.anatomy.routed_experts import CHOICE_SUFFIXES, convert_choices
from microscope_tui.extensions.anatomy.routing_file import Routing
from microscope_tui.runlog import ROUTING_NAME, safe_text
from microscope_tui.sources import Unreadable

_WIDTH = 80


def mismatch(
    a: Path,
    b: Path,
    /,
    *,
    as_json: AsJson = False,
    max_share: float | None = None,
    top_k: int | None = None,
) -> int:
    """Compare what was chosen for the same tokens: 0 compared, 1 too different, 3 not comparable.

    Parameters
    ----------
    a
        A probe: its folder or its routing.bin. Or routed_experts of an engine or RL trainer: a
        .jsonl of responses, a .npy of integers (tokens, layers, k), or a .pt of slime or miles.
    b
        The same, for the same tokens in the same order.
    max_share
        Exit with 1 if more than this share of the (token, layer) choices differs, for example
        0.1; by default any share is fine.
    top_k
        Experts per token, if neither side has it: SGLang's choices have no shape.
    """
    refuse_below(1, top_k=top_k)
    if max_share is not None and not 0 <= max_share <= 1:
        fail(f"--max-share {max_share:g}: write a share from 0 to 1", USAGE)
    with ExitStack() as opened:
        sides, engine, token_ids = _opened((a, b), top_k, opened)
        # An engine has no margins.
        margins_of = next((file for file, of in zip("AB", engine, strict=True) if not of), "")
        try:
            found = compare(*sides, token_ids=token_ids, margins_of=margins_of)
        except NotComparable as error:
            fail(f"{a} and {b} cannot be compared: {error}", NO_VERDICT)
        names = safe_text(a, 200), safe_text(b, 200)
        code = int(max_share is not None and found.share > max_share)
        if as_json:
            print_record(mismatch_json(found, *names))
            return code
        for letter, name, side, converted in zip("AB", names, sides, engine, strict=True):
            facts = [*filter(None, (side.model, side.dtype))]
            if converted:
                facts.append("engine output")
            known = f": {', '.join(facts)}" if facts else ""
            print_data(f"{letter}  {name}{known}")
        glyphs = glyphs_for("auto", sys.stdout)
        for line in mismatch_text(found, _WIDTH, glyphs):
            print_data(spelled(plain(line), glyphs))
        return code


def _opened(
    places: tuple[Path, Path], top_k: int | None, opened: ExitStack
) -> tuple[list[Routing], list[bool], bool]:
    """Both sides, which of them are an engine's output, and whether both have token ids."""
    paths = list(places)
    for at, path in enumerate(paths):
        if path.is_dir():
            paths[at] = path / ROUTING_NAME
    engine = [path.suffix in CHOICE_SUFFIXES for path in paths]
    try:
        sides, token_ids = _both(paths, engine, top_k, opened)
    except FileNotFoundError as error:
        how = "make a probe with `moe-microscope probe MODEL TEXT`"
        fail(f"{error.filename}: no such file; {how}", NO_VERDICT)
    except (BadRouting, Unreadable) as error:
        fail(str(error), NO_VERDICT)
    except OSError as error:
        fail(f"{error.filename or ''}: {error.strerror or error}", NO_VERDICT)
    for at in sorted(range(2), key=lambda at: engine[at]):
        if top_k not in (None, k := sides[at].shape.top_k):
            fail(f"--top-k {top_k}: the tokens of {paths[at]} choose {k} experts", NO_VERDICT)
    return sides, engine, token_ids


def _both(
    paths: Sequence[Path], engine: Sequence[bool], top_k: int | None, opened: ExitStack
) -> tuple[list[Routing], bool]:
    """An engine's output is read with the shape of a probe on the other side, or its k alone."""
    sides: dict[int, Routing] = {}
    token_ids = True
    beside = None
    first, last = sorted(range(2), key=lambda at: engine[at])
    for at in (first, last, first):
        if at in sides:
            continue
        path = paths[at]
        if engine[at]:
            folder = opened.enter_context(tempfile.TemporaryDirectory(prefix="moe-microscope-"))
            say_size(path)
            target = Path(folder) / ROUTING_NAME
            try:
                token_ids &= convert_choices(path, target, beside, top_k)
            except Unreadable:
                if at == last or top_k:
                    raise
                continue  # it may only need the k of the other side
            path = target
        sides[at] = opened.enter_context(Routing(path))
        top_k = top_k or sides[at].shape.top_k
        if not engine[at]:
            beside = sides[at].shape
    return [sides[0], sides[1]], token_ids
