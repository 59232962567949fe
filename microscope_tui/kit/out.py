"""What leaves the screens: texts for a chat, and files that never overwrite an existing one."""

import itertools
import os
import re
from contextlib import suppress
from pathlib import Path

from microscope_tui.diagnosis import Advice, Finding
from microscope_tui.draw import frame
from microscope_tui.draw.spans import WORD_OF_SEVERITY, plain
from microscope_tui.runlog import safe_text
from microscope_tui.watch import RunView

MOST_BYTES = 4096
_MOST_CELLS = 1000  # of one line
_MAX_STEM = 80


def verdict_text(view: RunView, found: tuple[Finding, Advice] | None) -> str:
    """The finding in full; without one the verdict on the run, in one line."""
    about = f"{view.name} step {view.step:,} ({view.life.word})"
    if found is None:
        return _clean(f"{about}: {plain(frame.verdict(view, _MOST_CELLS, 1)[0]).strip()}")
    finding, advice = found
    severity = WORD_OF_SEVERITY[finding.severity]
    more = f" (1 of {len(view.alerts)} alerts)" if len(view.alerts) > 1 else ""
    over = "" if finding.active else ", recovered"
    return _clean(
        f"{about}: {severity} {finding.rule}{over}{more}",
        f"Verdict: {advice.cause_first(advice.verdict)}",
        f"Why: {advice.why}",
        f"Next: {advice.next}",
    )


def _clean(*lines: str) -> str:
    """Without control characters, at most ``MOST_BYTES``."""
    text = "\n".join(safe_text(line, _MOST_CELLS) for line in lines)
    data = text.encode()
    if len(data) <= MOST_BYTES:
        return text
    return data[: MOST_BYTES - 3].decode(errors="ignore") + "…"


def free_name(folder: Path, stem: str, suffix: str) -> Path:
    """``stem.suffix`` in ``folder``, or the first unused of ``stem-2.suffix`` …

    ``stem`` may be any text: only ``A-Za-z0-9._-`` of it are kept, and of a long one its two ends.
    ``suffix``: with its dot.
    """
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip(".-") or "view"
    if len(stem) > _MAX_STEM:  # names that differ at either end stay different
        stem = f"{stem[: _MAX_STEM // 2]}-{stem[1 - _MAX_STEM // 2 :]}"
    path = folder / f"{stem}{suffix}"
    for number in itertools.count(2):
        if not os.path.lexists(path):  # a dangling link occupies the name as well
            break
        path = folder / f"{stem}-{number}{suffix}"
    return path


def write_new(path: Path, text: str) -> None:
    """Write a new file; a partly written one is removed.

    ``OSError``: it is there already, or cannot be written.
    """
    data = text.encode("utf-8", "replace")
    with open(path, "xb") as file:
        try:
            file.write(data)
            file.flush()
        except OSError:
            with suppress(OSError):
                path.unlink()
            raise
