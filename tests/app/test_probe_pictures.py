"""The screens of a probe as pictures, against those that somebody looked at and found good.

After a change that is meant: ``UPDATE_PICTURES=1 pytest tests/app/test_probe_pictures.py``, look at
what differs in ``tests/app/pictures/probe``, and commit it.
"""

import os
from pathlib import Path
from typing import NamedTuple

import pytest

from microscope_tui.app import PictureRequest, draw
from microscope_tui.lines import Glyphs
from microscope_tui.watch import Fleet, fleet, run_watch
from tests.app.test_pictures import DRAWN_WITH, UPDATE, edit, versions, without_clock, words
from tests.probed import write_probed

PICTURES = Path(__file__).parent / "pictures" / "probe"
SYSTEMS = {"truecolor": "truecolor", "16": "standard", "mono-ascii": "truecolor"}


class Case(NamedTuple):
    """One picture."""

    screen: str
    size: tuple[int, int]
    colours: str
    token: int = 0
    expert: int | None = None

    @property
    def name(self) -> str:
        columns, rows = self.size
        lit = "" if self.expert is None else f"-expert-{self.expert}"
        return f"{self.screen}-{columns}x{rows}-{self.colours}-{self.token}{lit}"


CASES = [
    Case("tokens", (60, 20), "mono-ascii", 1700),
    Case("tokens", (80, 24), "truecolor", 30),
    Case("tokens", (80, 24), "16", 2400),
    Case("tokens", (120, 40), "truecolor", 1100),
    Case("tokens", (120, 40), "truecolor", 1700, expert=1),
    Case("tokens", (120, 40), "mono-ascii", 30, expert=1),
    Case("tokens", (200, 60), "truecolor", 1500),
    Case("slices", (60, 20), "16"),
    Case("slices", (80, 24), "truecolor"),
    Case("slices", (120, 40), "truecolor", expert=3),
    Case("slices", (120, 40), "mono-ascii"),
    Case("slices", (200, 60), "truecolor"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_probed(tmp_path_factory.mktemp("runs") / "probe")
    edit(folder, without_clock)
    os.utime(folder / "metrics.jsonl", (1_795_000_000, 1_795_000_000))
    return folder


def test_no_picture_is_left_over() -> None:
    assert {path.stem for path in PICTURES.glob("*.svg")} == {case.name for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_a_screen_looks_as_it_did(
    case: Case, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("textual.constants.COLOR_SYSTEM", SYSTEMS[case.colours])
    monkeypatch.delenv("NO_COLOR", raising=False)
    if case.colours == "mono-ascii":
        monkeypatch.setenv("NO_COLOR", "1")
    for module in (fleet, run_watch):
        monkeypatch.setattr(module, "age_of", lambda *_, **__: 300.0)
    glyphs = Glyphs.ASCII if case.colours == "mono-ascii" else Glyphs.BRAILLE
    wanted = PictureRequest(case.screen, *case.size, expert=case.expert, token=case.token)
    picture = await draw(Fleet(run), wanted, glyphs)
    if glyphs is Glyphs.ASCII:
        assert picture.text.isascii()
    assert max(len(line) for line in picture.text.split("\n")) <= case.size[0]
    path = PICTURES / f"{case.name}.svg"
    if UPDATE:
        PICTURES.mkdir(exist_ok=True)
        path.write_text(picture.svg, encoding="utf-8")
    looked_at = path.read_text(encoding="utf-8")
    if DRAWN_WITH.read_text(encoding="utf-8").strip() == versions():
        assert picture.svg == looked_at
    else:  # another version may draw the same text with other markup
        assert words(picture.svg) == words(looked_at)
