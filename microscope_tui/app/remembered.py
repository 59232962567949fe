"""View settings per folder of logs, kept between sessions.

One small file per folder in the user's state folder (on Linux ``~/.local/state/moe-microscope``).
It is a convenience: its content may be lost, and a damaged or foreign file is ignored.
"""

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from microscope_tui.app.session import Session
from microscope_tui.lines import Axis, Look, Measure, Order, Palette, Pattern
from microscope_tui.runlog import safe_text
from microscope_tui.watch import read_small, remove_oldest, write_whole
from microscope_tui.watch.state_folder import state_folder

_VERSION = 1
_MOST_BYTES = 1 << 20
_MOST_CHARS = 200
_MOST_SEEN = 500
_MOST_FILES = 200
_MOST_SMOOTHING = 1e6
_Choice = TypeVar("_Choice", bound=StrEnum)
_OUR_FILE = re.compile(r"[0-9a-f]{16}\.json|\.[0-9a-f]{16}-\w+\.tmp")


@dataclass(frozen=True)
class SavedView:
    """The view settings of one user for one folder; empty by default."""

    layer: str = ""
    """Name of the chosen router."""
    measure: str = ""
    palette: str = ""
    order: str = ""
    filter: str = ""
    axis: str = ""
    smoothing: float = 0.0
    seen: tuple[str, ...] = ()
    """Keys of acknowledged alerts, newest last."""


def recall(session: Session) -> None:
    """Restore the saved view of the folder; missing settings keep their values."""
    kept, look = load_view(session.fleet.root), session.look
    measure = _choice(Measure, kept.measure, look.measure)
    session.look = Look(
        measure=Measure.LOAD if measure is Measure.DIFFERENCE else measure,  # has no reference yet
        order=_choice(Order, kept.order, look.order),
        palette=_choice(Palette, kept.palette, look.palette),
    )
    session.axis = _choice(Axis, kept.axis, session.axis)
    session.filter = Pattern.parse(kept.filter)
    session.smoothing = kept.smoothing
    session.seen = dict.fromkeys(kept.seen)
    session.wanted_layer = kept.layer


def remember(session: Session) -> str | None:
    """Save the view of the folder; returns the problem, if any."""
    look, run = session.look, session.watch.run if session.watch is not None else None
    layer = run.routers[session.selected].name if run and run.routers else ""
    default = Look()
    kept = SavedView(
        layer=layer if session.selected else "",
        measure=look.measure if look.measure not in (default.measure, Measure.DIFFERENCE) else "",
        palette=look.palette if look.palette is not default.palette else "",
        order=look.order if look.order is not default.order else "",
        filter=session.filter.text,
        axis=session.axis if session.axis is not Axis.STEP else "",
        smoothing=session.smoothing,
        seen=tuple(session.seen),
    )
    return save_view(session.fleet.root, kept)


def load_view(logs: Path, state_dir: Path | None = None) -> SavedView:
    """The saved view of ``logs``; the default if there is none that is usable.

    Args:
        state_dir: the state folder, where it is not the user's.
    """
    try:
        folder = os.path.realpath(logs)
        stored = json.loads(read_small(_file_of(folder, state_dir), _MOST_BYTES))
    except (OSError, ValueError, RecursionError):  # no file, no JSON, or no state folder
        return SavedView()
    if not isinstance(stored, dict) or stored.get("version") != _VERSION:
        return SavedView()
    return _view_of(stored) if stored.get("logs") == folder else SavedView()


def save_view(logs: Path, view: SavedView, state_dir: Path | None = None) -> str | None:
    """Save ``view`` for ``logs`` if it changed; returns the problem, if any.

    Of ``seen`` the newest are kept, and of the folders those that were looked at last.
    """
    view = _view_of(asdict(view))
    if view == load_view(logs, state_dir):
        return None
    try:
        folder = os.path.realpath(logs)
        path = _file_of(folder, state_dir)
        document = {"version": _VERSION, "logs": folder, **asdict(view)}
        write_whole(path, json.dumps(document, allow_nan=False, indent=1).encode())
    except (OSError, ValueError) as error:
        where = safe_text(state_dir or state_folder(), _MOST_CHARS)
        why = getattr(error, "strerror", None) or error
        return safe_text(
            f"view settings are not saved: {where}: {why}; make it writable, or set XDG_STATE_HOME",
            2 * _MOST_CHARS,
        )
    remove_oldest(path.parent, _OUR_FILE, _MOST_FILES, kept=path.name)
    return None


def _choice(kind: type[_Choice], value: str, otherwise: _Choice) -> _Choice:
    """The member of that name; ``otherwise`` for a name of another version."""
    return kind(value) if value in [member.value for member in kind] else otherwise


def _file_of(folder: str, state_dir: Path | None) -> Path:
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return (state_dir or state_folder()) / "views" / f"{name}.json"


def _view_of(stored: dict[str, Any]) -> SavedView:
    """The valid fields of ``stored``; defaults for the others."""
    texts: dict[str, Any] = {
        field.name: _text(stored.get(field.name))
        for field in fields(SavedView)
        if field.type is str
    }
    seen = stored.get("seen")
    keys = [_text(key) for key in seen] if isinstance(seen, list | tuple) else []
    keys = list(dict.fromkeys(key for key in reversed(keys) if key))[:_MOST_SEEN]  # newest first
    smoothing = stored.get("smoothing")
    if not isinstance(smoothing, int | float) or not 0.0 <= smoothing <= _MOST_SMOOTHING:
        smoothing = 0.0
    return SavedView(**texts, smoothing=float(smoothing), seen=tuple(reversed(keys)))


def _text(value: object) -> str:
    if not isinstance(value, str):
        return ""
    return safe_text(value[:_MOST_CHARS], _MOST_CHARS)[:_MOST_CHARS]
