"""What leaves the screens: texts to copy, pictures, files that never overwrite an existing one.

The texts are for a chat or a ticket, readable without the screen, in the same words. A picture is
Rich's SVG, made self-contained and small. The same screen gives the same bytes, so that pictures
can be compared and kept in git. Only markup is changed: screen text has its quotes escaped, so no
pattern here that contains a quote can match it.
"""

import itertools
import math
import os
import re
from contextlib import suppress
from html import escape, unescape
from pathlib import Path

from rich.cells import cell_len

from microscope_tui.lines import WORD_OF_SEVERITY, frame, plain, words
from microscope_tui.report import effective_experts
from microscope_tui.runlog import safe_text
from microscope_tui.watch import LayerView, RunView

FONTS = "'JetBrains Mono', 'Cascadia Mono', Menlo, 'DejaVu Sans Mono', monospace"
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NAME = re.compile(r'((?:class|id)="|="url\(#)terminal-\d+-')
_NAME_IN_STYLE = re.compile(r"\.terminal-\d+-")
_LINE_CLIP = re.compile(r'<clipPath id="moe-line-\d+">.*?</clipPath>\s*', re.S)
_CLIPPED_TO_LINE = re.compile(r' clip-path="url\(#moe-line-\d+\)"')
_LONG_NUMBER = re.compile(r'\d+\.\d{7,}(?=")')
_BACKGROUND = re.compile(
    r'<rect fill="(#\w+)" x="([^"]+)" y="([^"]+)" width="([^"]+)" height="([^"]+)"'
    r' shape-rendering="crispEdges"/>'
)
_BACKGROUNDS = re.compile(f"(?:{_BACKGROUND.pattern})+")
_TEXT = re.compile(
    r'<text class="([^"]+)" x="(\d+(?:\.\d+)?)" y="([^"]+)" textLength="(\d+(?:\.\d+)?)">'
    r"([^<]*)</text>"
)
_WORD = re.compile("[^\N{NO-BREAK SPACE}]+")
_TOUCHING = 0.05  # Rich rounds to six digits
MOST_BYTES = 4096
_MOST_CELLS = 1000  # of one line
_MAX_STEM = 80


def verdict_text(view: RunView) -> str:
    """The worst finding, why, and what to do; one line if the run is healthy."""
    about = f"{view.name} step {view.step:,} ({view.life.word})"
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
    parts = _balance_texts(layer, view)
    if layer.entropy is not None:
        most = math.log(max(1, layer.router.num_experts))
        parts.append(f"entropy {words.decimal(layer.entropy)} of {words.decimal(most)}")
    if layer.max_load is not None:
        parts.append(f"max load {words.decimal(layer.max_load)}")
    if layer.drop_rate is not None:
        dropped = words.percent(layer.drop_rate)
        parts.append(f"dropped {dropped}" if layer.drop_rate else "nothing dropped")
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
        so_far = "" if view.judged >= 1 else f" up to step {view.judged_step:,}"
        parts.append(f"no alert{so_far}")
    return _clean(f"{layer.router.name} step {view.step:,}: {', '.join(parts)}")


def _balance_texts(layer: LayerView, view: RunView) -> list[str]:
    """The balance and the number of effective experts, as one part; as far as they are known."""
    router, effective = layer.router, effective_experts(layer, view)
    of_all = ""
    if effective is not None and math.isfinite(effective):
        of_all = f"{effective:.1f} of {router.num_experts:,} experts effective"
    if layer.balance is None:
        return [of_all] if of_all else []
    balance = f"balance c {words.index(layer.balance)} {words.judged(layer)}".rstrip()
    return [f"{balance} ({of_all}, top-{router.top_k:,})" if of_all else balance]


def value_text(layer: LayerView, expert: int | None = None) -> str:
    """The load of ``expert``, else the balance of the layer, with all digits; empty without one."""
    if expert is None:
        return "" if layer.balance is None else repr(layer.balance)
    known = layer.load is not None and 0 <= expert < len(layer.load)
    return repr(layer.load[expert]) if layer.load is not None and known else ""


def _clean(*lines: str) -> str:
    """The lines as one text without control characters, at most ``MOST_BYTES``."""
    text = "\n".join(safe_text(line, _MOST_CELLS) for line in lines)
    data = text.encode()
    if len(data) <= MOST_BYTES:
        return text
    return data[: MOST_BYTES - 3].decode(errors="ignore") + "…"


def free_name(folder: Path, stem: str, suffix: str) -> Path:
    """``stem`` and ``suffix`` in ``folder``, or the first unused of ``stem-2`` …

    ``stem`` may be any text; only letters, digits, ``.``, ``_`` and ``-`` of it are kept.
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
    """Write a new file, or raise an ``OSError``; a partly written one is removed."""
    data = text.encode("utf-8", "replace")
    with open(path, "xb") as file:
        try:
            file.write(data)
            file.flush()
        except OSError:
            with suppress(OSError):
                path.unlink()
            raise


def stand_alone(svg: str) -> str:
    """The export without web fonts, with deterministic names and without redundant markup."""
    head, ends, body = _NOT_XML.sub("\ufffd", svg).partition("</style>")
    head = re.sub(r"@font-face\s*\{.*?\}", "", head, flags=re.S)
    head = re.sub(r"font-family: ?[^;}]*Fira[^;}]*", f"font-family: {FONTS}", head)
    head = head.replace("<svg ", '<svg xml:space="preserve" ', 1)  # blanks are kept
    head = re.sub(r"\n\s*(?=\n)", "", _NAME_IN_STYLE.sub(".moe-", head))
    body = _NAME.sub(r"\1moe-", body)
    # Every line has its own clip except the last: Rich refers to one that it never wrote.
    body = _CLIPPED_TO_LINE.sub("", _LINE_CLIP.sub("", body))
    body = _BACKGROUNDS.sub(lambda found: _merged(found[0]), body)
    body = _TEXT.sub(_placed, body.replace("&#160;", "\N{NO-BREAK SPACE}"))
    svg = f"{head}{ends}{body}"
    return _LONG_NUMBER.sub(lambda found: f"{float(found[0]):g}", svg)


def _merged(backgrounds: str) -> str:
    """Merge neighbours of one colour: most of a screen is background."""
    merged: list[tuple[str, float, str, float, str]] = []
    for fill, x, y, width, height in _BACKGROUND.findall(backgrounds):
        left, size = float(x), float(width)
        if merged:
            *_, (last_fill, start, last_y, last_size, _) = merged
            if (fill, y) == (last_fill, last_y) and abs(start + last_size - left) < _TOUCHING:
                merged[-1] = (fill, start, y, left + size - start, height)
                continue
        merged.append((fill, left, y, size, height))
    rects = [
        f'<rect fill="{fill}" x="{x:g}" y="{y}" width="{width:g}" height="{height}"/>'
        for fill, x, y, width, height in merged
    ]
    return f'<g shape-rendering="crispEdges">{"".join(rects)}</g>'


def _placed(found: re.Match[str]) -> str:
    """A line with drawn characters as one element per stretch, each at its own place.

    A font without braille borrows it from another one that is wider or narrower: in one long
    element a curve would drift away from its axis.
    """
    name, x, y, length = found[1], float(found[2]), found[3], float(found[4])
    text = unescape(found[5])
    if not any(char >= "\u2500" for char in text):
        return found[0]
    cell = length / max(1, cell_len(text))
    words = [(word.start(), word[0]) for word in _WORD.finditer(text)]
    return "".join(
        f'<text class="{name}" x="{x + cell * cell_len(text[:at]):.6g}" y="{y}" '
        f'textLength="{cell * cell_len(word):.6g}">{escape(word)}</text>'
        for at, word in words
    )
