"""Which extensions this installation has. Tables name them; nothing imports them before its use."""

import os

_EXTENSIONS = os.path.join(os.path.dirname(__file__), "extensions")


class NotInstalled(ValueError):
    """Something of an extension was asked for that is not here; the message names it."""


def missing(place: str) -> str:
    """The extension that ``place`` (``extensions.NAME.module``) needs and that is not here.

    Empty if it is here, and for a place in the core.
    """
    first, *rest = place.split(".")
    if first != "extensions" or os.path.isdir(os.path.join(_EXTENSIONS, rest[0])):
        return ""
    return rest[0]


def not_installed(what: str, extension: str) -> NotInstalled:
    """The error for ``what``: a command, a screen, a source or a file."""
    return NotInstalled(f"{what}: this installation has no {extension}")
