"""``snapshot --animate``: steps of the main screen as one SVG that plays them."""

import json
import os
import re
from collections import defaultdict
from html import unescape
from itertools import product
from math import ceil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tests.conftest import Call

EVERYWHERE = list(product(range(40), range(120)))
ELEMENT = re.compile(
    r'<path (?:fill|stroke)="(#\w+)"[^>]* d="([^"]+)"/>'
    r'|<text x="(\d+)" y="(\d+)"(?: textLength="\d+")?([^>]*)>([^<]*)<'
)


def cells(svg: str) -> dict[tuple[int, int], set[Any]]:
    """What is to be seen in every cell, by row and column; those that are not drawn are absent."""
    seen: dict[tuple[int, int], set[Any]] = defaultdict(lambda: {"#0f1419"})
    for colour, path, x, y, look, text in ELEMENT.findall(svg):
        for box in re.findall(r"M(\S+) (\S+)h([\d.]+)v([\d.]+)", path):
            left, top, width, height = map(float, box)
            rows = range(int(top // 24), ceil((top + height) / 24))
            for row, column in product(rows, range(int(left // 12), ceil((left + width) / 12))):
                across = max(0, left - 12 * column), min(12, left + width - 12 * column)
                down = max(0, top - 24 * row), min(24, top + height - 24 * row)
                if (across, down) == ((0, 12), (0, 24)):  # hides what was there
                    seen[row, column] = {colour}
                else:
                    seen[row, column].add((colour, across, down))
        for dots in re.findall(r"M(\d+) (\d+)h(\d+)(?=M|$)", path):
            left, top, width = map(int, dots)
            for place in range(left, left + width, 6):
                seen[top // 24, place // 12].add((colour, place, top))
        for at, char in enumerate(unescape(text)):
            if char != " ":
                seen[int(y) // 24, int(x) // 12 + at].add((look, char))
    return seen


def test_every_moment_shows_what_a_snapshot_shows_and_only_changes_are_drawn(
    call: Call, scenario: Any, tmp_path: Path
) -> None:
    run = scenario("collapse", routers=5, num_experts=64, top_k=8, steps=250)
    log, picture = run / "metrics.jsonl", tmp_path / "collapse.svg"
    log.write_text(log.read_text().replace('"L4"', json.dumps("</text><script>\x1b")))
    os.utime(log, (1, 1))  # "finished 20,000 d ago" in every picture
    assert call("snapshot", run, "--animate", "80:240", "-o", picture)[0] == 0
    svg = picture.read_text()
    assert len(svg) <= 300_000
    ElementTree.fromstring(svg)
    assert "<script" not in svg
    first, *later = svg.split("<g>")
    assert len(later) == svg.count('repeatCount="indefinite"') == 35
    assert not any((0, 1) in cells(change) for change in later)  # "MoE Microscope"
    assert "&lt;" in "".join(later)
    for frame, step in ((0, 80), (17, 157), (35, 240)):
        still = call("snapshot", run, "--step", step, "--format", "svg")[1]
        there, here = cells(still), cells(first + "".join(later[:frame]))
        assert [here[place] for place in EVERYWHERE] == [there[place] for place in EVERYWHERE]
    code, _, err = call("snapshot", run, "--animate", "80:251", "-o", picture)
    assert (code, "no step 251; the newest is 250" in err) == (3, True)
    assert picture.read_text() == svg
