"""What leaves the screens: texts to copy, and files that never overwrite an existing one.

The texts are for a chat or a ticket, readable without the screen, in the same words.
"""

import itertools
import math
import os
import re
from contextlib import suppress
from pathlib import Path

from microscope_tui.diagnosis import Episode
from microscope_tui.lines import WORD_OF_SEVERITY, frame, plain, words
from microscope_tui.report import effective_experts
from microscope_tui.runlog import safe_text
from microscope_tui.watch import LayerView, RunView

MOST_BYTES = 4096
_MOST_CELLS = 1000  # of one line
_MAX_STEM = 80


def verdict_text(view: RunView) -> str:
    """The worst finding, why, and what to do; one line where the run is healthy."""
    about = f"{view.name} step {view.step:,} ({view.state})"
    if view.error or view.worst is None:
        return _clean(f"{about}: {plain(frame.verdict(view, _MOST_CELLS, 1)[0]).strip()}")
    finding, advice = view.worst
    severity = WORD_OF_SEVERITY[finding.severity]
    more = f" (1 of {len(view.alerts)} alerts)" if len(view.alerts) > 1 else ""
    return _clean(
        f"{about}: {severity} {finding.rule}{more}",
        f"Verdict: {advice.verdict}",
        f"Why: {advice.why}",
        f"Next: {advice.next}",
    )


def row_text(layer: LayerView, view: RunView) -> str:
    """One layer in one line, with its worst alert; missing values are left out."""
    parts = [*_balance(layer, view), *_entropy(layer)]
    if layer.max_load is not None:
        parts.append(f"max load {words.decimal(layer.max_load)}")
    if layer.drop_rate is not None:
        dropped = words.percent(layer.drop_rate)
        parts.append(f"dropped {dropped}" if layer.drop_rate else "nothing dropped")
    parts.append(_alert(layer, view))
    return _clean(f"{layer.router.name} step {view.step:,}: {', '.join(parts)}")


def value_text(layer: LayerView, expert: int | None = None) -> str:
    """One number with all its digits: the load of ``expert``, else the balance of the layer.

    Empty where there is no such number.
    """
    if expert is None:
        return "" if layer.collapse_index is None else repr(layer.collapse_index)
    known = layer.load is not None and 0 <= expert < len(layer.load)
    return repr(layer.load[expert]) if layer.load is not None and known else ""


def _balance(layer: LayerView, view: RunView) -> list[str]:
    effective = effective_experts(layer, view)
    known = effective is not None and math.isfinite(effective)
    of_all = f"{effective:.1f} of {layer.router.num_experts:,} experts effective" if known else ""
    if layer.collapse_index is None:
        return [of_all] if known else []
    balance = f"balance c {words.index(layer.collapse_index)}"
    if left_out := words.without(layer.without):
        balance += f" {left_out}"
    return [f"{balance} ({of_all}, top-{layer.router.top_k:,})" if known else balance]


def _entropy(layer: LayerView) -> list[str]:
    if layer.entropy is None:
        return []
    most = math.log(max(1, layer.router.num_experts))
    return [f"entropy {words.decimal(layer.entropy)} of {words.decimal(most)}"]


def _alert(layer: LayerView, view: RunView) -> str:
    """The worst active episode in this layer, or how far the diagnosis has come."""
    active = [
        episode
        for finding, _ in view.findings  # worst first, causes before effects
        for episode in finding.episodes
        if episode.active and episode.router_index == layer.index
    ]
    if active:
        worst: Episode = max(active, key=lambda episode: episode.severity)
        return f"{WORD_OF_SEVERITY[worst.severity]} {worst.rule} since {worst.onset:,}"
    return "no alert" if view.judged >= 1.0 else f"no alert up to step {view.judged_step:,}"


def _clean(*lines: str) -> str:
    """The lines as one text without control characters, at most ``MOST_BYTES``."""
    text = "\n".join(safe_text(line, _MOST_CELLS) for line in lines)
    data = text.encode()
    if len(data) <= MOST_BYTES:
        return text
    return data[: MOST_BYTES - 3].decode(errors="ignore") + "…"


def free_name(folder: Path, stem: str, suffix: str) -> Path:
    """``stem.suffix`` in ``folder``, or the first unused of ``stem-2.suffix`` …

    Args:
        stem: may be any text; only letters, digits, ``.``, ``_`` and ``-`` of it are kept, and
            of a long one its two ends.
        suffix: with its dot.
    """
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip(".-") or "view"
    if len(stem) > _MAX_STEM:  # names that differ at either end stay different
        stem = f"{stem[: _MAX_STEM // 2]}-{stem[1 - _MAX_STEM // 2 :]}"
    path = folder / f"{stem}{suffix}"
    for number in itertools.count(2):
        if not os.path.lexists(path):  # a link that leads nowhere takes the name as well
            break
        path = folder / f"{stem}-{number}{suffix}"
    return path


def write_new(path: Path, text: str) -> None:
    """Write a new file; a partly written file is removed.

    Raises:
        OSError: it is there already, or cannot be written.
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
