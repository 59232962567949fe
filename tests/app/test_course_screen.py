"""Screen 6: any number of the run, one or two at a time, with the loss and the findings first."""

import threading
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.draw.numbers import label_of
from microscope_tui.watch import Reading
from tests.app.pilot import AppPilot, open_app
from tests.conftest import header, step


@pytest.fixture
def diverging(scenario: Any) -> Path:
    return scenario("divergence", routers=3, steps=400)  # type: ignore[no-any-return]


def listed(app: AppPilot) -> list[str]:
    lines = [line[5:].rsplit("  ", 1)[0].strip() for line in app.text("numbers").split("\n")]
    return [line for line in lines[1:] if line]


async def choose(app: AppPilot, name: str) -> None:
    """Filter the list down to a number, and draw it."""
    await app.press("slash", *name, "enter", "down", "enter")


async def test_the_loss_is_first_then_what_findings_are_about_with_values(diverging: Path) -> None:
    async with open_app(diverging, "6", size=(120, 40)) as app:
        names = listed(app)
        assert names[:2] == ["overview", "loss"]
        assert {"z-loss", "highest logit", "gradient norm"} <= set(names[2:7])
        assert names.index("z-loss") < names.index("learning rate") < names.index("tokens")
        norm = next(line for line in app.text("numbers").split("\n") if "gradient norm" in line)
        assert norm.split()[0] == "C"
        assert norm.split()[-1] in app.text("chart-grad_norm")
        await app.press("slash", *"gra", "enter")
        assert set(listed(app)) == {"gradient norm", "router gradient"}


async def test_enter_draws_a_number_and_v_a_second_one_until_v_again(diverging: Path) -> None:
    async with open_app(diverging, "6", "down", "v", size=(120, 40)) as app:
        assert app.charts()[0] == "loss"  # the loss beside itself is nothing new
        await app.press("down", "v")
        second = label_of(app.session.numbers[1])
        assert app.session.numbers[0] == "loss"
        assert app.charts() == ["number"]
        assert f"and {second}" in app.text("chart-number").split("\n")[0]
        lines = [line.rstrip() for line in app.text("chart-number").split("\n")]
        for name in ("loss", second):  # at the ends of their lines
            assert sum(line.endswith(f" {name}") for line in lines[1:]) == 1
        assert len(app.text("ribbon").rstrip()) == 120 - 1 - 17
        await app.press("v")
        assert app.session.numbers == ("loss",)
        await app.press("escape", "6")
        assert app.charts() == ["number"]  # it is still chosen
        await app.press("home", "enter")
        assert len(app.charts()) == 5


async def test_a_narrow_overview_takes_all_width_until_a_number_is_wanted(diverging: Path) -> None:
    async with open_app(diverging, "6", size=(80, 24)) as app:
        assert app.screen.query_one("#chart-loss").size.width == 79
        await app.press("down", "enter")
        assert listed(app)[1] == "loss"
        assert app.screen.query_one("#chart-number").size.width == 79 - 32
        await app.press("z")
        assert app.screen.query_one("#chart-number").size.width == 79


async def test_when_the_loss_rose_is_the_same_in_every_window(diverging: Path) -> None:
    async with open_app(diverging, "6", size=(80, 24)) as app:
        narrow = app.text("answer").partition(" before")[0]
        assert "the loss rose" in narrow
        await app.resize(200, 60)
        assert app.text("answer").startswith(narrow)


async def test_another_number_is_read_in_the_background_and_leaving_stops_it(
    write_log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [step(n, [[4] * 8] * 3, 16, reward=n / 4) for n in range(1, 60)]
    path, real, stopped = write_log([header(), *steps]), Reading.read_on, threading.Event()

    def slow(self: Reading, cancelled: Any) -> None:
        while not cancelled():
            stopped.wait(0.01)
        stopped.set()

    async with open_app(path, "6", size=(120, 30)) as app:
        monkeypatch.setattr(Reading, "read_on", slow)
        await choose(app, "reward")
        assert "reading the log: 0%" in app.text("chart-number")
        await app.press("up", "down")  # the keys work meanwhile
        await app.press("escape")
        assert stopped.wait(5.0)
        monkeypatch.setattr(Reading, "read_on", real)
        await app.press("6")
        await app.sees("reward   14.8 at 59", "chart-number")
        assert "reading" not in app.text("chart-number")


async def test_a_layer_shows_first_what_only_the_log_has_of_its_findings(diverging: Path) -> None:
    async with open_app(diverging, "a", "2", size=(120, 40)) as app:
        shown = app.charts()
        assert shown.index("z_loss") < shown.index("max_logit") < shown.index("balance")
        record = app.view().record
        value = record.router.z_loss[app.session.selected]
        await app.sees(f"z-loss   {value:.3g} at 400", "chart-z_loss")
        await app.sees("┊", "chart-z_loss")
