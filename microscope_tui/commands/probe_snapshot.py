"""``snapshot --format json`` of the screens that show a probe."""

from microscope_tui.console import USAGE, fail
from microscope_tui.report import (
    NO_VERDICT,
    compared_probes,
    mismatch_json,
    slices_json,
    tokens_json,
)
from microscope_tui.routing import FILE_NAME, BadRouting, NotComparable, Routing
from microscope_tui.runlog import RunFile, encode_record, safe_text
from microscope_tui.watch import RunWatch


def probe_as_json(watched: RunWatch, screen: str, layer: str, token: int) -> str:
    """The tokens from ``token`` on, or the slices, of one layer of a probe."""
    path = watched.path.with_name(FILE_NAME)
    try:
        with Routing(path) as routing:
            names = routing.shape.layer_names
            if layer and layer not in names:
                shown = ", ".join(names[:8]) + (" …" if len(names) > 8 else "")
                fail(f"no layer {safe_text(layer, 20)!r}: there are {shown}", NO_VERDICT)
            at = names.index(layer) if layer else 0
            if screen == "slices":
                return slices_json(routing, at)
            if not 0 <= token < routing.tokens:
                fail(f"no token {token:,}: there are {routing.tokens:,}, from 0", NO_VERDICT)
            return tokens_json(routing, at, token)
    except FileNotFoundError:
        fail(f"{path.parent}: no probe; moe-microscope probe MODEL TEXT makes one", NO_VERDICT)
    except BadRouting as error:
        fail(safe_text(error, 300), NO_VERDICT)
    except OSError as error:
        fail(f"{path}: cannot be read: {error.strerror or error}", NO_VERDICT)


def mismatch_as_json(run: RunFile, against: RunFile | None) -> str:
    """The comparison of two probes as JSON."""
    if against is None:
        fail("--screen mismatch as JSON needs the other run: --against PATH", USAGE)
    paths = [run.path.with_name(FILE_NAME) for run in (against, run)]
    try:
        found = compared_probes(*paths)
    except (NotComparable, BadRouting) as error:
        fail(str(error), NO_VERDICT)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror or error}; no probe there", NO_VERDICT)
    names = [safe_text(path, 200) for path in paths]
    return encode_record(mismatch_json(found, *names)).decode().rstrip()
