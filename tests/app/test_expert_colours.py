"""The colours of experts in a text: read by everybody, told apart by all eyes."""

from itertools import combinations

import pytest
from rich.color import Color

from microscope_tui.app import COLOURS, palette, style_of
from microscope_tui.lines import LETTERS
from tests.app.colour_vision import EYES, RGB, contrast, distance
from tests.app.test_palettes import READABLE, SEEN_AT_A_GLANCE, ground, ink, seen

NUMBERS = range(len(COLOURS))
BUSIEST = range(len(LETTERS))
COLOURED = ["truecolor", "256", "standard"]
LEAST_OF_256 = 5.0
"""Sixteen dozen of colours have few dark ones; letters below the text (v) tell them apart."""


@pytest.mark.parametrize("system", COLOURED)
@pytest.mark.parametrize("family", ["token", "also", "lit"])
def test_a_token_can_be_read(family: str, system: str) -> None:
    for number in NUMBERS:
        role = f"{family}:{number}"
        assert contrast(ink(role, system), ground(role, system)) >= READABLE, role


@pytest.mark.parametrize("system", COLOURED)
def test_a_bar_is_seen(system: str) -> None:
    for number in NUMBERS:
        assert contrast(ink(f"ink:{number}", system), ground(f"ink:{number}", system)) >= 3


@pytest.mark.parametrize("eyes", EYES)
@pytest.mark.parametrize(
    ("system", "least"), [("truecolor", SEEN_AT_A_GLANCE), ("256", LEAST_OF_256)]
)
def test_two_experts_differ_for_all_eyes(system: str, least: float, eyes: str) -> None:
    grounds: dict[int, RGB] = {n: ground(f"token:{n}", system) for n in BUSIEST}
    screen = seen(Color.parse(palette.GROUND), system)
    for one, other in combinations(grounds, 2):
        assert distance(grounds[one], grounds[other], eyes) >= least, (one, other)
    for number, colour in grounds.items():
        assert distance(colour, screen, eyes) >= least, number


def test_sixteen_colours_give_every_expert_its_own_ink() -> None:
    assert len({ink(f"token:{n}", "standard") for n in NUMBERS}) == len(COLOURS)
    assert {ground(f"token:{n}", "standard") for n in NUMBERS} == {(0, 0, 0)}
    assert style_of("also:0", "standard") != style_of("token:0", "standard")


def test_without_colours_the_lit_expert_is_still_seen() -> None:
    styles = [style_of(f"{family}:0", None) for family in ("token", "also", "lit")]
    assert all((style.color, style.bgcolor) == (None, None) for style in styles)
    assert len(set(styles)) == 3
    assert style_of("cursor", None) not in styles


def test_numbers_can_be_read_on_the_cells_that_have_light_ink() -> None:
    for system in COLOURED:
        for level in [*range(-16, -2), *range(3, 6)]:
            role = f"num:{level}"
            assert contrast(ink(role, system), ground(role, system)) >= 3, (role, system)
        for level in range(6, 17):
            role = f"heat:{level}"
            assert contrast(ink(role, system), ground(role, system)) >= 3, (role, system)
