"""Every palette on every kind of terminal: readable, distinct for all eyes, sent as chosen."""

from functools import partial
from itertools import combinations, pairwise

import pytest
from rich._palettes import STANDARD_PALETTE
from rich.color import Color, ColorSystem
from rich.style import Style
from textual._ansi_theme import MONOKAI
from textual.filter import ANSIToTruecolor

from microscope_tui.diagnosis import Severity
from microscope_tui.draw.heat import Palette
from microscope_tui.extensions.anatomy.tokens_text import LETTERS
from microscope_tui.kit.light import LIGHT
from microscope_tui.kit.palette import DARK, Shades, style_of
from tests.app.colour_vision import EYES, RGB, contrast, distance, lightness

SYSTEMS = {
    "truecolor": ColorSystem.TRUECOLOR,
    "256": ColorSystem.EIGHT_BIT,
    "standard": ColorSystem.STANDARD,
}
LEVELS = [*range(-16, -2), -1, 0, 1, *range(3, 17)]  # what a load can be: ±1 are calm shades
CELLS = ["heat:dead", *(f"heat:{n}" for n in LEVELS)]
WORDS = [
    *("", "value", "title", "brand", "dim", "curve", "ok", "warn", "crit", "accent"),
    *("badge-warn", "badge-crit", "cursor"),
]
EXPERTS = range(len(DARK.experts))
READABLE = 4.5  # WCAG 2, text
MARKS = 3.0  # WCAG 2, graphical objects
SEEN_AT_A_GLANCE = 10.0  # CIEDE2000

every_system = pytest.mark.parametrize("system", list(SYSTEMS))
every_palette = pytest.mark.parametrize("chosen", list(Palette))
all_eyes = pytest.mark.parametrize("eyes", EYES)


@pytest.fixture(autouse=True, params=[DARK, LIGHT], ids=["dark", "light"])
def shades(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Shades:
    monkeypatch.setattr(request.module, "style_of", partial(style_of, shades=request.param))
    return request.param


def sent(colour: Color | None, system: str) -> Color:
    """The colour that is sent after Textual's filter and Rich's choice."""
    through = ANSIToTruecolor(MONOKAI).truecolor_style(Style(color=colour), Color.default())
    return through.color.downgrade(SYSTEMS[system])


def seen(colour: Color | None, system: str) -> RGB:
    arrived = sent(colour, system)
    if system == "standard":
        return tuple(STANDARD_PALETTE[arrived.number])
    return tuple(arrived.get_truecolor())


def ground(role: str, system: str, chosen: Palette = Palette.DIVERGING) -> RGB:
    return seen(style_of(role, system, chosen).bgcolor, system)


def ink(role: str, system: str, chosen: Palette = Palette.DIVERGING) -> RGB:
    return seen(style_of(role, system, chosen).color, system)


def legibility(role: str, system: str, chosen: Palette = Palette.DIVERGING) -> float:
    return contrast(ink(role, system, chosen), ground(role, system, chosen))


@every_system
def test_words_and_tokens_are_readable_and_faint_is_not_loud(system: str) -> None:
    tokens = [f"{family}:{n}" for family in ("token", "also", "lit") for n in EXPERTS]
    for role in [*WORDS, *tokens]:
        assert legibility(role, system) >= READABLE, role
    # Rulers, calm stretches of the ribbon, zeros: they need not be read.
    assert READABLE > legibility("faint", system) >= 1.5


@every_palette
@every_system
def test_marks_and_bars_are_visible_on_their_cells(chosen: Palette, system: str) -> None:
    marked = ["heat:dead", *(f"heat:{n}" for n in range(6, 17))]
    numbers = [f"num:{n}" for n in [*range(-16, -2), *range(3, 6)]]
    bars = [f"ink:{n}" for n in EXPERTS]
    for role in [*marked, *(numbers + bars if chosen is Palette.DIVERGING else ())]:
        assert legibility(role, system, chosen) >= MARKS, role


@every_palette
@every_system
@all_eyes
def test_starving_fair_and_hot_differ_for_all_eyes(chosen: Palette, system: str, eyes: str) -> None:
    starving = {ground(f"heat:{n}", system, chosen) for n in range(-16, -5)}
    overloaded = {ground(f"heat:{n}", system, chosen) for n in range(8, 17)}
    fair = ground("heat:0", system, chosen)
    for low in starving:
        assert distance(low, fair, eyes) >= SEEN_AT_A_GLANCE
        assert all(distance(low, high, eyes) >= SEEN_AT_A_GLANCE for high in overloaded)
    assert all(distance(fair, high, eyes) >= SEEN_AT_A_GLANCE for high in overloaded)


@every_system
@all_eyes
def test_warnings_and_critical_alerts_differ_by_colour_and_letter(system: str, eyes: str) -> None:
    """Green and coral are alike to a deuteranope: there the word beside them decides."""
    assert distance(ink("warn", system), ink("crit", system), eyes) >= SEEN_AT_A_GLANCE
    letters = [severity.letter.strip() for severity in Severity]
    assert all(letters)
    assert len(set(letters)) == len(letters)


@all_eyes
@pytest.mark.parametrize(("system", "least"), [("truecolor", SEEN_AT_A_GLANCE), ("256", 5.0)])
def test_the_busiest_experts_differ_for_all_eyes(
    system: str, least: float, eyes: str, shades: Shades
) -> None:
    """256 colours have few dark ones: there letters below the text (v) help."""
    grounds: dict[int, RGB] = {n: ground(f"token:{n}", system) for n in range(len(LETTERS))}
    screen = seen(Color.parse(shades.ground.true), system)
    for one, other in combinations(grounds, 2):
        assert distance(grounds[one], grounds[other], eyes) >= least, (one, other)
    for number, colour in grounds.items():
        assert distance(colour, screen, eyes) >= least, number


def test_sixteen_colours_give_every_expert_its_own_ink() -> None:
    assert len({ink(f"token:{n}", "standard") for n in EXPERTS}) == len(DARK.experts)
    assert {ground(f"token:{n}", "standard") for n in EXPERTS} == {ground("", "standard")}
    assert style_of("also:0", "standard") != style_of("token:0", "standard")


def test_the_sequential_palette_grows_lighter() -> None:
    grounds = {
        system: [lightness(ground(f"heat:{n}", system, Palette.CIVIDIS)) for n in LEVELS]
        for system in ("truecolor", "256")
    }
    assert all(low + 0.2 < high for low, high in pairwise(grounds["truecolor"]))
    indexed = grounds["256"]
    assert all(low <= high for low, high in pairwise(indexed))
    assert indexed[-1] - indexed[0] > 50


@every_palette
@every_system
def test_a_dead_and_a_fair_expert_are_like_no_other_cell(chosen: Palette, system: str) -> None:
    dead, fair = style_of("heat:dead", system, chosen), ground("heat:0", system, chosen)
    for n in LEVELS:
        here = ground(f"heat:{n}", system, chosen)
        assert distance(ground("heat:dead", system, chosen), here) >= SEEN_AT_A_GLANCE
        half = style_of(f"heat:{n}|heat:dead", system, chosen)
        assert (half.color, half.bgcolor) == (
            style_of(f"heat:{n}", system, chosen).bgcolor,
            dead.bgcolor,
        )
    for n in (-4, 6, *((-3, 3) if system == "truecolor" else ())):
        assert fair != ground(f"heat:{n}", system, chosen)


@every_palette
def test_256_colours_look_like_truecolor_and_are_sent_as_they_were_chosen(chosen: Palette) -> None:
    for role in CELLS:
        wanted = style_of(role, "256", chosen).bgcolor
        # Rich takes the lightest greys for their neighbours.
        taken = (wanted.number, wanted.number - 1) if wanted.number >= 247 else (wanted.number,)
        assert sent(wanted, "256").number in taken, role
        apart = distance(ground(role, "truecolor", chosen), ground(role, "256", chosen))
        assert apart <= 21 or role == "heat:dead", role


@every_palette
def test_sixteen_colours_survive_the_theme_of_the_toolkit(chosen: Palette) -> None:
    for role in [*WORDS, *CELLS]:
        style = style_of(role, "standard", chosen)
        for colour in (style.color, style.bgcolor):
            assert seen(colour, "standard") == tuple(colour.get_truecolor() if colour else ())


@every_palette
def test_without_colours_nothing_is_coloured_and_cells_still_differ(chosen: Palette) -> None:
    different = [
        [f"heat:{n}" for n in (-9, 0, 9)],
        ["token:0", "also:0", "lit:0", "cursor"],
    ]
    for roles in (WORDS, ["faint", "heat:dead"], *different):
        styles = [style_of(role, None, chosen) for role in roles]
        assert {(style.color, style.bgcolor) for style in styles} == {(None, None)}
        assert roles not in different or len(set(styles)) == len(roles)
    assert style_of("badge-crit", None).reverse
    assert style_of("cursor", None).reverse
