"""Saves a session's view settings and restores them; ``saved_view`` has the file."""

from dataclasses import replace
from enum import StrEnum
from typing import TypeVar

from microscope_tui.app.saved_view import SavedView, load_view, save_view
from microscope_tui.app.session import Session
from microscope_tui.lines import Axis, Look, Measure, Order, Palette, Pattern

_Choice = TypeVar("_Choice", bound=StrEnum)
_NEEDS_REFERENCE = Measure.DIFFERENCE


def recall(session: Session) -> None:
    """Restore the saved view of the folder; missing settings keep their values."""
    kept, look = load_view(session.path), session.look
    session.look = Look(
        measure=_choice(Measure, kept.measure, look.measure),
        order=_choice(Order, kept.order, look.order),
        palette=_choice(Palette, kept.palette, look.palette),
    )
    if session.look.measure is _NEEDS_REFERENCE:
        session.look = replace(session.look, measure=Measure.LOAD)
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
        measure=look.measure if look.measure not in (default.measure, _NEEDS_REFERENCE) else "",
        palette=look.palette if look.palette is not default.palette else "",
        order=look.order if look.order is not default.order else "",
        filter=session.filter.text,
        axis=session.axis if session.axis is not Axis.STEP else "",
        smoothing=session.smoothing,
        seen=tuple(session.seen),
    )
    return save_view(session.path, kept)


def _choice(kind: type[_Choice], value: str, otherwise: _Choice) -> _Choice:
    """The member of that name; ``None`` for a name of another version."""
    return kind(value) if value in [member.value for member in kind] else otherwise
