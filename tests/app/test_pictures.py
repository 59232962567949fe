"""Every screen as a picture, against the one that was looked at and found good.

The combinations of screen, size, colours and state cover every pair; those of a probe and of
placements are listed.
After an intended change, draw them again with ``UPDATE_PICTURES=1 pytest`` and this file, look at
what differs in ``tests/app/pictures``, and commit it.
"""

import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from html import unescape
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from microscope_tui.app.picture import draw
from microscope_tui.draw.glyphs import Glyphs
from microscope_tui.kit.screen_table import SCREENS as ALL_SCREENS
from microscope_tui.kit.session import PictureRequest
from microscope_tui.scenarios import Shape, write_run
from microscope_tui.watch import Fleet, fleet, run_watch
from tests.probed import write_probed

PICTURES = Path(__file__).parent / "pictures"
DRAWN_WITH = PICTURES / "drawn-with.txt"
UPDATE = bool(os.environ.get("UPDATE_PICTURES"))
SIZES = ((60, 20), (80, 24), (120, 40), (200, 60))
COLOURS = ("truecolor", "16", "mono-ascii")
STATES = ("healthy", "collapsed", "nan", "empty", "finished", "hostile")
SCREENS = ("main", *sorted(ALL_SCREENS.keys() - {"main", "help", "placement"}), "help")
FACTORS = (SCREENS, SIZES, COLOURS, STATES)
HOSTILE = "\x1b]52;c;aGFja2Vk\x07[red]w[gate]\u202e[@click=app.quit]x[/]" + "名前" * 8


class Case(NamedTuple):
    screen: str
    size: tuple[int, int]
    colours: str
    state: str
    token: int | None = None
    expert: int | None = None

    @property
    def path(self) -> Path:
        columns, rows = self.size
        name = f"{self.screen}-{columns}x{rows}-{self.colours}"
        if self.state != "probe":
            return PICTURES / f"{name}-{self.state}.svg"
        lit = "" if self.expert is None else f"-expert-{self.expert}"
        return PICTURES / "probe" / f"{name}-{self.token or 0}{lit}.svg"


def pairwise() -> Iterator[Case]:
    """Few cases that together hold every pair of values, always the same ones."""
    every = [Case(*values) for values in itertools.product(*FACTORS)]
    missing = {pair for case in every for pair in pairs(case)}
    used: Counter[Any] = Counter()
    while missing:
        best = max(every, key=lambda c: (len(pairs(c) & missing), -sum(used[v] for v in c[:4])))
        missing -= pairs(best)
        used.update(best[:4])
        yield best


def pairs(case: Case) -> set[tuple[Any, Any]]:
    return set(itertools.combinations(enumerate(case[:4]), 2))


PROBE_CASES = [
    Case("tokens", (60, 20), "mono-ascii", "probe", 1700),
    Case("tokens", (80, 24), "truecolor", "probe", 30),
    Case("tokens", (80, 24), "16", "probe", 2400),
    Case("tokens", (120, 40), "truecolor", "probe", 1100),
    Case("tokens", (120, 40), "truecolor", "probe", 1700, expert=1),
    Case("tokens", (120, 40), "mono-ascii", "probe", 30, expert=1),
    Case("tokens", (200, 60), "truecolor", "probe", 1500),
    Case("slices", (60, 20), "16", "probe"),
    Case("slices", (80, 24), "truecolor", "probe"),
    Case("slices", (120, 40), "truecolor", "probe", expert=3),
    Case("slices", (120, 40), "mono-ascii", "probe"),
    Case("slices", (200, 60), "truecolor", "probe"),
]
PLACEMENT_CASES = [
    Case("placement", (80, 24), "truecolor", "ranks"),
    Case("placement", (120, 40), "truecolor", "ranks"),
    Case("placement", (120, 40), "16", "hostile"),
    Case("placement", (200, 60), "mono-ascii", "ranks"),
]
CASES = [*pairwise(), *PROBE_CASES, *PLACEMENT_CASES]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of runs in a state; written once, and long ago."""
    root = tmp_path_factory.mktemp("runs")
    written: dict[str, Path] = {}

    def of(state: str) -> Path:
        if state not in written:
            written[state] = root / state
            written[state].mkdir()
            write(written[state], state)
            for log in written[state].rglob("*.jsonl"):
                edit(log.parent, without_clock)
                os.utime(log, (1_795_000_000, 1_795_000_000))
        return written[state]

    return of


def write(folder: Path, state: str) -> None:
    shape = Shape(routers=6, num_experts=16, top_k=2, steps=300, tokens=2048)
    match state:
        case "healthy":
            write_run(folder / "a-run", "healthy", shape=shape, seed=3)
        case "collapsed":
            write_run(folder / "a-run", "collapse", shape=shape, seed=3)
            write_run(folder / "another", "healthy", shape=shape, seed=4)
        case "nan":
            write_run(folder / "a-run", "collapse", shape=shape, seed=3)
            edit(folder / "a-run", lambda it: re.sub(r'"(entropy|loss)":[^,\]]*\[?[^]]*', nan, it))
        case "ranks":
            write_run(folder / "a-run", "rank-skew", shape=shape, seed=3)
        case "finished":
            large = Shape(routers=30, num_experts=256, top_k=8, steps=120, tokens=4096)
            write_run(folder / "a-run", "healthy", shape=large, seed=3)
        case "hostile":
            write_run(folder / "a-run", "collapse", shape=shape, seed=3)
            edit(folder / "a-run", lambda text: text.replace('"L3"', json.dumps(HOSTILE)))
        case "probe":
            write_probed(folder / "probe")
        case "empty":
            (folder / "a-run").mkdir()
            (folder / "a-run" / "metrics.jsonl").write_text(
                '{"kind": "run", "format_version": 1, "run": "a-run", "model": {"layers": [1], '
                '"num_experts": 8, "top_k": 2}}\n'
            )


def without_clock(text: str) -> str:
    """The time of day, and how fast this machine wrote the run, are not to be seen."""
    text = re.sub(r'"(tokens_per_s|step_time_s)":[^,}]*', r'"\1":null', text)
    return re.sub(r'"time":[-+.e\d]+', '"time":1795000000', text)


def nan(found: re.Match[str]) -> str:
    return found[0] if "[" not in found[0] else re.sub(r"[-\d.e]+(?=[,\]]|$)", '"NaN"', found[0])


def edit(folder: Path, change: Callable[[str], str]) -> None:
    log = folder / "metrics.jsonl"
    log.write_text(change(log.read_text()))


def versions() -> str:
    return "\n".join(f"{name} {metadata.version(name)}" for name in ("rich", "textual", "plotext"))


def words(svg: str) -> list[str]:
    return [unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]


def test_the_cases_cover_every_pair_and_no_picture_is_left_over() -> None:
    covered = {pair for case in CASES for pair in pairs(case)}
    assert covered >= {p for case in itertools.product(*FACTORS) for p in pairs(Case(*case))}
    assert set(PICTURES.rglob("*.svg")) == {case.path for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.path.stem)
async def test_a_screen_looks_as_it_did(case: Case, runs: Any, monkeypatch: Any) -> None:
    systems = {"truecolor": "truecolor", "16": "standard", "mono-ascii": "truecolor"}
    monkeypatch.setattr("textual.constants.COLOR_SYSTEM", systems[case.colours])
    monkeypatch.delenv("NO_COLOR", raising=False)
    if case.colours == "mono-ascii":
        monkeypatch.setenv("NO_COLOR", "1")
    for module in (fleet, run_watch):
        monkeypatch.setattr(module, "age_of", lambda *_, **__: 300.0)
    glyphs = Glyphs.ASCII if case.colours == "mono-ascii" else Glyphs.BRAILLE
    wanted = PictureRequest(case.screen, *case.size, expert=case.expert, token=case.token)
    picture = await draw(Fleet(runs(case.state)), wanted, glyphs)
    assert not set("\x1b\u202e") & set(picture.svg)
    if glyphs is Glyphs.ASCII:
        assert picture.text.isascii()
    assert max((len(line) for line in picture.text.split("\n")), default=0) <= case.size[0]
    if UPDATE:
        case.path.parent.mkdir(exist_ok=True)
        case.path.write_text(picture.svg, encoding="utf-8")
        DRAWN_WITH.write_text(versions() + "\n", encoding="utf-8")
    looked_at = case.path.read_text(encoding="utf-8")
    if DRAWN_WITH.read_text(encoding="utf-8").strip() == versions():
        assert picture.svg == looked_at
    else:  # another version may draw the same text with other markup
        assert words(picture.svg) == words(looked_at)
