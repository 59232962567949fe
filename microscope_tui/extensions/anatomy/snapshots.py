"""What a snapshot of the screens ``tokens`` and ``slices`` needs beside the screen itself."""

from microscope_tui.commands.console import NO_VERDICT, fail
from microscope_tui.extensions.anatomy.as_json import slices_json
from microscope_tui.extensions.anatomy.layout import BadRouting
from microscope_tui.extensions.anatomy.opened import anatomy_of
from microscope_tui.extensions.anatomy.routing_file import Routing
from microscope_tui.kit.session import PictureRequest, Session
from microscope_tui.runlog import ROUTING_NAME, RunFile, safe_text
from microscope_tui.watch import RunWatch


def refuse(wanted: PictureRequest, run: RunFile, watched: RunWatch | None) -> None:
    """Exit if ``run`` has nothing to draw; ``watched``: the run, if it was read already."""
    held_out = watched is not None and watched.shown.held_out is not None
    if wanted.screen != "slices" or not held_out:
        _probe_of(run).close()


def as_json(wanted: PictureRequest, watched: RunWatch) -> str:
    """The slices of a layer, by default of the first one."""
    with _probe_of(watched) as routing:
        names = routing.shape.layer_names
        if wanted.layer and wanted.layer not in names:
            fail(f"no layer {safe_text(wanted.layer, 20)!r}: see --screen slices", NO_VERDICT)
        return slices_json(routing, names.index(wanted.layer) if wanted.layer else 0)


async def choose(session: Session, wanted: PictureRequest) -> str:
    """Move to the token that is wanted; returns why that is not possible."""
    token = wanted.token
    if token is None:
        return ""
    anatomy = anatomy_of(session)
    routing = await anatomy.open(session.watch.path) if session.watch else None
    tokens = routing.tokens if routing is not None else 0
    if not 0 <= token < tokens:
        there = f"there are 0 to {tokens - 1:,}" if tokens else "this run has no probe"
        return f"no token {token:,}: {there}"
    anatomy.token = token
    return ""


def _probe_of(run: RunFile | RunWatch) -> Routing:
    path = run.path.with_name(ROUTING_NAME)
    try:
        return Routing(path)
    except FileNotFoundError:
        fail(f"{path.parent}: no probe; moe-microscope probe MODEL TEXT makes one", NO_VERDICT)
    except BadRouting as error:
        fail(safe_text(error, 300), NO_VERDICT)
    except OSError as error:
        fail(f"{path}: cannot be read: {error.strerror or error}", NO_VERDICT)
