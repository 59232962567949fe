"""Which characters the reader of our output can be trusted with."""

import os

from microscope_tui.report.glyphs import Glyphs


def glyphs_for(choice: str, stream: object) -> Glyphs:
    """``auto`` means braille where encoding, locale and terminal can carry it."""
    if choice != "auto":
        return Glyphs(choice)
    # Python speaks UTF-8 in the C locale too, but whoever asks for C may have no more than ASCII.
    locale = os.environ.get("LC_ALL") or os.environ.get("LANG") or ""
    if locale in ("C", "POSIX"):
        return Glyphs.ASCII
    if os.environ.get("TERM") == "linux":
        return Glyphs.BLOCK  # the console's font has no braille
    encoding = (getattr(stream, "encoding", None) or "ascii").lower().replace("-", "")
    dumb = os.environ.get("TERM") == "dumb"
    return Glyphs.BRAILLE if encoding.startswith("utf") and not dumb else Glyphs.ASCII
