"""How somebody looks at a folder of logs, kept from one sitting to the next.

One small file per folder in the user's state folder (on Linux ``~/.local/state/moe-microscope``).
It is a convenience and never in the way: what is in it may be lost, and a file that is damaged or
a stranger's counts as none.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from platformdirs import user_state_path

from microscope_tui.runlog.follow import open_regular_file
from microscope_tui.runlog.safe_text import safe_text

_VERSION = 1
_MOST_BYTES = 64 << 10
_MOST_CHARS = 200
_MOST_SEEN = 500
_MOST_FILES = 200
_MOST_SMOOTHING = 1e6
_OUR_FILE = re.compile(r"[0-9a-f]{16}\.json|\.[0-9a-f]{16}-\w+\.tmp")


@dataclass(frozen=True)
class SavedView:
    """The choices of one person on one folder of logs; empty where nothing was chosen."""

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


def load_view(logs: Path, state_dir: Path | None = None) -> SavedView:
    """What was kept for ``logs``; the default where there is nothing that can be used.

    Args:
        state_dir: the state folder, where it is not the user's.
    """
    try:
        folder = os.path.realpath(logs)
        stored = json.loads(_content(_file_of(folder, state_dir)))
    except (OSError, ValueError, RecursionError):  # no file, no JSON, or no state folder at all
        return SavedView()
    if not isinstance(stored, dict) or stored.get("version") != _VERSION:
        return SavedView()
    return _view_of(stored) if stored.get("logs") == folder else SavedView()


def save_view(logs: Path, view: SavedView, state_dir: Path | None = None) -> str | None:
    """Keep ``view`` for ``logs`` if it differs from what is kept; says what is in the way.

    Of ``seen`` the newest are kept, and of the folders those that were looked at last.
    """
    view = _view_of(asdict(view))
    if view == load_view(logs, state_dir):
        return None
    try:
        folder = os.path.realpath(logs)
        path = _file_of(folder, state_dir)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _replace(path, _encoded(folder, view))
    except (OSError, ValueError) as error:
        where = safe_text(state_dir or _state_dir(), _MOST_CHARS)
        why = getattr(error, "strerror", None) or error
        return safe_text(
            f"the view is not kept: {where}: {why}; make it writable, or set XDG_STATE_HOME",
            2 * _MOST_CHARS,
        )
    _remove_oldest(path)
    return None


def _state_dir() -> Path:
    return user_state_path("moe-microscope", appauthor=False)


def _file_of(folder: str, state_dir: Path | None) -> Path:
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return (state_dir or _state_dir()) / "views" / f"{name}.json"


def _content(path: Path) -> bytes:
    with os.fdopen(open_regular_file(path), "rb") as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ValueError(f"more than {_MOST_BYTES:,} bytes")
    return data


def _view_of(stored: dict[str, Any]) -> SavedView:
    """The fields of ``stored`` that can be used; the default for the others."""
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


def _encoded(folder: str, view: SavedView) -> bytes:
    """The file of ``view``; where it would be too large, the older half of ``seen`` goes."""
    while True:
        document = {"version": _VERSION, "logs": folder, **asdict(view)}
        data = json.dumps(document, allow_nan=False, indent=1).encode()
        if len(data) <= _MOST_BYTES or not view.seen:
            return data
        view = replace(view, seen=view.seen[len(view.seen) // 2 + 1 :])


def _replace(path: Path, data: bytes) -> None:
    """Write ``path`` at once as a whole; readable by its owner alone, as ``mkstemp`` makes it."""
    file, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(file, "wb") as whole:
            whole.write(data)
        os.replace(name, path)
    except OSError:
        with suppress(OSError):
            os.unlink(name)
        raise


def _remove_oldest(kept: Path) -> None:
    """Of our files beside ``kept`` the newest stay; what cannot be removed is tried again later."""
    with suppress(OSError):
        for _, path in sorted(_files_beside(kept), reverse=True)[_MOST_FILES - 1 :]:
            os.unlink(path)


def _files_beside(kept: Path) -> Iterator[tuple[int, str]]:
    """Time of change and path of every other file that a save has left."""
    with os.scandir(kept.parent) as entries:
        for entry in entries:
            ours = _OUR_FILE.fullmatch(entry.name) and entry.name != kept.name
            if ours and entry.is_file(follow_symlinks=False):
                yield entry.stat(follow_symlinks=False).st_mtime_ns, entry.path
