"""What leaves the screens: texts for a chat, and files that never overwrite an existing one."""

import itertools
import math
import os
import re
from contextlib import suppress
from pathlib import Path

from microscope_tui.diagnosis import Advice, Finding
from microscope_tui.draw import frame, words
from microscope_tui.draw.export import effective_experts
from microscope_tui.draw.spans import WORD_OF_SEVERITY, plain
from microscope_tui.runlog import safe_text
from microscope_tui.watch import LayerView, RunView

MOST_BYTES = 4096
_MOST_CELLS = 1000  # of one line
_MAX_STEM = 80


def verdict_text(view: RunView, chosen: tuple[Finding, Advice] | None = None) -> str:
    """The chosen or worst finding; one line if the run is healthy."""
    about = f"{view.name} step {view.step:,} ({view.life.word})"
    found = chosen
    if found is None and not view.log.error:
        found = view.worst
    if found is None:
        return _clean(f"{about}: {plain(frame.verdict(view, _MOST_CELLS, 1)[0]).strip()}")
    finding, advice = found
    severity = WORD_OF_SEVERITY[finding.severity]
    more = f" (1 of {len(view.alerts)} alerts)" if len(view.alerts) > 1 and not chosen else ""
    over = "" if finding.active else ", recovered"
    return _clean(
        f"{about}: {severity} {finding.rule}{over}{more}",
        f"Verdict: {advice.cause_first(advice.verdict)}",
        f"Why: {advice.why}",
        f"Next: {advice.next}",
    )


def row_text(layer: LayerView, view: RunView) -> str:
    """In one line, with its worst alert; missing values are left out."""
    parts = _balance_texts(layer, view)
    if layer.entropy is not None:
        most = math.log(max(1, layer.router.num_experts))
        parts.append(f"entropy {words.decimal(layer.entropy)} of {words.decimal(most)}")
    if layer.max_load is not None:
        parts.append(f"max load {words.decimal(layer.max_load)}")
    if layer.drop_rate:
        parts.append(f"dropped {words.percent(layer.drop_rate)}")
    elif layer.drop_rate is not None:
        parts.append("nothing dropped")
    active = [
        episode
        for finding, _ in view.findings  # worst first, causes before effects
        for episode in finding.episodes
        if episode.active and episode.router_index == layer.index
    ]
    if active:
        worst = max(active, key=lambda episode: episode.severity)
        parts.append(f"{WORD_OF_SEVERITY[worst.severity]} {worst.rule} since {worst.onset:,}")
    else:
        so_far = "" if view.judging.share >= 1 else f" up to step {view.judging.last_step:,}"
        parts.append(f"no alert{so_far}")
    return _clean(f"{layer.router.name} step {view.step:,}: {', '.join(parts)}")


def _balance_texts(layer: LayerView, view: RunView) -> list[str]:
    router, effective = layer.router, effective_experts(layer, view)
    of_all = ""
    if effective is not None and math.isfinite(effective):
        of_all = f"{effective:.1f} of {router.num_experts:,} experts effective"
    if layer.balance is None:
        return [*filter(None, [of_all])]
    balance = f"balance c {words.index(layer.balance)} {words.judged(layer)}".rstrip()
    if of_all:
        balance += f" ({of_all}, top-{router.top_k:,})"
    return [balance]


def value_text(layer: LayerView, expert: int | None = None) -> str:
    """The load of ``expert``, else the balance of the layer, with all digits."""
    load = layer.load or ()
    if expert is not None and 0 <= expert < len(load):
        return repr(load[expert])
    if expert is None and layer.balance is not None:
        return repr(layer.balance)
    return ""


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
