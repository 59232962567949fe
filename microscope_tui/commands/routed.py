"""``moe-microscope coverage`` and ``mismatch``: what was routed, and where two probes differ."""

import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from microscope_tui.commands.options import (
    DEFAULT_SOURCE,
    AsJson,
    SourceOptions,
    refuse_below,
    step_range,
)
from microscope_tui.console import (
    DEFAULT_PATH,
    USAGE,
    fail,
    fail_to_read,
    newest_file,
    print_data,
    print_record,
    say,
    say_size,
)
from microscope_tui.lines import glyphs_for, mismatch_text, plain, spelled
from microscope_tui.placement import NoCounts
from microscope_tui.report import (
    NO_VERDICT,
    coverage_json,
    coverage_of,
    coverage_text,
    mismatch_json,
)
from microscope_tui.routing import (
    FILE_NAME,
    BadRouting,
    NotComparable,
    Routing,
    compare,
)
from microscope_tui.runlog import RunFile, UnknownFormat, safe_text
from microscope_tui.sources import CHOICE_SUFFIXES, Unreadable, convert_choices

_WIDTH = 80


def coverage(
    path: Path = DEFAULT_PATH,
    /,
    *,
    min_tokens: int = 1000,
    steps: str = "",
    as_json: AsJson = False,
    reading: SourceOptions = DEFAULT_SOURCE,
) -> int:
    """List the experts with too few tokens: 0 none, 1 some, 3 no counts.

    Parameters
    ----------
    path
        A probe, a run, or a file of another tool (see ``sources``), such as an imatrix.
    min_tokens
        Real tokens that every expert should have seen.
    steps
        A:B, the first and the last step to count; A: and :B are open. By default the last 200
        counted steps of a training run, and all of an evaluation or a probe.
    """
    refuse_below(1, min_tokens=min_tokens)
    first, last = step_range("--steps", steps)
    run = newest_file(reading.search(path.parent if path.name == FILE_NAME else path))
    try:
        found = coverage_of(run, min_tokens, first, last, _window_length)
    except NoCounts as error:
        fail(f"{run.path}: {error}; nothing to measure", NO_VERDICT)
    except (OSError, UnknownFormat) as error:
        fail_to_read(run, error)
    if as_json:
        print_record(coverage_json(found))
    else:
        print_data(coverage_text(found))
    return int(found.short > 0)


def _window_length(run: RunFile) -> int | None:
    try:
        with Routing(run.path.with_name(FILE_NAME)) as routing:
            if not routing.tokens:
                return None
            return max(1, routing.tokens // (routing.window_of(routing.tokens - 1) + 1))
    except FileNotFoundError:
        return None
    except (OSError, BadRouting) as error:
        say(f"no number of sequences: {error}")
        return None


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
        letters = [name for name, is_engine in zip("AB", engine, strict=True) if not is_engine]
        margins_of = letters[0] if letters else ""  # an engine has no margins
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
            facts = [side.model, side.dtype, "engine output" if converted else ""]
            known = ", ".join(fact for fact in facts if fact)
            print_data(f"{letter}  {name}: {known}" if known else f"{letter}  {name}")
        glyphs = glyphs_for("auto", sys.stdout)
        for line in mismatch_text(found, _WIDTH, glyphs):
            print_data(spelled(plain(line), glyphs))
        return code


def _opened(
    places: tuple[Path, Path], top_k: int | None, opened: ExitStack
) -> tuple[list[Routing], list[bool], bool]:
    """Both sides, which of them are an engine's output, and whether both have token ids."""
    paths = [path / FILE_NAME if path.is_dir() else path for path in places]
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
            target = Path(folder) / FILE_NAME
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
