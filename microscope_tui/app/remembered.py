"""View settings per folder of logs, kept between sessions.

One small file per folder in the user's state folder. Its content may be lost, and a damaged or
foreign file is ignored.
"""

import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from microscope_tui.draw.glyphs import Glyphs
from microscope_tui.draw.heat import Look, Measure, Order, Palette
from microscope_tui.draw.time_line import Axis
from microscope_tui.kit.session import DEFAULT, Preferences, Session
from microscope_tui.runlog import safe_text
from microscope_tui.sources import BadMapping, SourceRequest, rules_of
from microscope_tui.watch import Fleet
from microscope_tui.watch.state_folder import read_small, remove_oldest, state_folder, write_whole

_MOST_BYTES = 1 << 20
_MOST_CHARS = 200
_MOST_SEEN = 500
_MOST_FILES = 200
_OUR_FILE = re.compile(r"[0-9a-f]{16}\.json|\.[0-9a-f]{16}-\w+\.tmp")
_Text = Annotated[str, Meta(max_length=_MOST_CHARS)]
_Choice = TypeVar("_Choice", Measure, Order, Palette)


class SavedView(msgspec.Struct, frozen=True, kw_only=True):
    """The view settings of one user for one folder; those of a new session by default."""

    version: Literal[1] = 1
    logs: str = ""
    """The folder, which the name of the file only hashes."""
    layer: _Text = ""
    """Name of the chosen one; empty for the first."""
    measure: _Text = ""
    palette: _Text | None = None
    """``None`` for the one that the config file names."""
    order: _Text = ""
    filter: _Text = ""
    axis: Axis = Axis.STEP
    smoothing: Annotated[float, Meta(ge=0.0, le=1e6)] = 0.0
    seen: tuple[_Text, ...] = ()
    """Keys of acknowledged alerts, newest last."""
    maps: tuple[Annotated[str, Meta(max_length=_MOST_BYTES >> 8)], ...] = ()
    """Confirmed keys of other tools, as given with ``--map``."""
    top_k: Annotated[int, Meta(ge=1, lt=100_000)] | None = None
    """The k of runs that do not contain it."""

    def applied(self, request: SourceRequest) -> SourceRequest:
        """``request`` with the confirmed keys and k; raises ``BadMapping``."""
        return replace(request, confirmed=rules_of(self.maps), confirmed_top_k=self.top_k)


def begin(
    fleet: Fleet, glyphs: Glyphs = Glyphs.BRAILLE, preferences: Preferences = DEFAULT
) -> Session:
    """A session that reads while the screens are still imported."""
    session = Session(fleet, glyphs, preferences)
    if preferences.remember:
        recall(session)
    session.reader.start()
    return session


def recall(session: Session) -> None:
    """Apply the view settings that were saved for the folder; call it before the reader starts."""
    kept = load_view(session.fleet.root)
    session.look = Look(
        measure=_choice(Measure, kept.measure, Measure.LOAD),
        order=_choice(Order, kept.order, Order.ID),
        palette=_choice(Palette, kept.palette or "", session.look.palette),
    )
    session.axis, session.smoothing = kept.axis, kept.smoothing
    session.filter = safe_text(kept.filter, _MOST_CHARS)
    session.seen = dict.fromkeys(kept.seen)
    session.wanted_layer = kept.layer
    session.maps, session.top_k = kept.maps, kept.top_k
    with suppress(BadMapping):  # of a newer version
        session.fleet.read_as(kept.applied(session.fleet.request))


def _choice(kind: type[_Choice], name: str, otherwise: _Choice) -> _Choice:
    """The choice of this name; ``otherwise`` for one that another version had."""
    try:
        return kind(name)
    except ValueError:
        return otherwise


def remember(session: Session) -> str | None:
    """Save the view of the folder; returns the problem, if any."""
    look, run = session.look, session.run
    layer = ""
    if run and session.selected:
        layer = run.routers[session.selected].name
    measure = look.measure
    if measure is Measure.DIFFERENCE:  # which needs a reference
        measure = Measure.LOAD
    kept = SavedView(
        layer=layer,
        measure=measure,
        palette=None if look.palette is Palette.DIVERGING else look.palette,
        order=look.order,
        filter=session.filter,
        axis=session.axis,
        smoothing=session.smoothing,
        seen=tuple(session.seen),
        maps=session.maps,
        top_k=session.top_k,
    )
    return save_view(session.fleet.root, kept)


def load_view(logs: Path) -> SavedView:
    """The saved view of ``logs``; the default if there is none that can be used."""
    try:
        folder, path = _place_of(logs)
        kept = msgspec.json.decode(read_small(path, _MOST_BYTES), type=SavedView)
    except (OSError, ValueError, RecursionError):  # no file, not ours, or no state folder
        return SavedView()
    return kept if kept.logs == folder else SavedView()


def save_view(logs: Path, view: SavedView) -> str | None:
    """Save ``view`` if it changed; returns the problem, if any.

    Of ``seen`` the newest are kept, and of the folders those that were looked at last.
    """
    before = load_view(logs)
    seen = tuple(key for key in view.seen[-_MOST_SEEN:] if len(key) <= _MOST_CHARS)
    view = replace(view, logs=before.logs, seen=seen)
    if view == before:
        return None
    try:
        folder, path = _place_of(logs)
        view = replace(view, logs=folder)
        write_whole(path, msgspec.json.format(msgspec.json.encode(view), indent=1))
    except (OSError, ValueError) as error:
        where = safe_text(state_folder(), _MOST_CHARS)
        why = getattr(error, "strerror", None) or error
        return safe_text(
            f"view settings are not saved: {where}: {why}; make it writable, or set XDG_STATE_HOME",
            2 * _MOST_CHARS,
        )
    remove_oldest(path.parent, _OUR_FILE, _MOST_FILES, kept=path.name)
    return None


def _place_of(logs: Path) -> tuple[str, Path]:
    folder = os.fsencode(os.path.realpath(logs))
    name = hashlib.sha256(folder).hexdigest()[:16]
    return folder.decode("utf-8", "replace"), state_folder() / "views" / f"{name}.json"
