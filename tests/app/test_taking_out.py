"""What is copied and written out of a screen, and the view that is kept of a folder."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.app import Microscope, Preferences
from microscope_tui.watch import Fleet
from tests.app.sitting import Seen, Until, read_until


@pytest.mark.parametrize(
    ("key", "start"),
    [("v", "collapse-0 step 450 (finished): critical COLLAPSE"), ("r", "L4 step 450: "), ("x", "")],
)
async def test_a_copy_goes_through_the_terminal(
    collapsed: Path, until: Until, seen: Seen, key: str, start: str
) -> None:
    async with Microscope(Fleet(collapsed)).run_test(size=(120, 40)) as pilot:
        app = await read_until(pilot, until, seen, "#verdict", "CRITICAL")
        await pilot.press("a", "right", "Y")
        assert "verdict" in seen(pilot, "#keys")
        await pilot.press(key)
        assert app.clipboard.startswith(start)
        if key == "x":
            assert float(app.clipboard) >= 0.0
        assert "copied" in seen(pilot, "#keys")
        await pilot.press("Y", "escape")
        assert "copied" not in seen(pilot, "#keys")


@pytest.mark.parametrize(("key", "suffix"), [("w", "csv"), ("W", "json"), ("S", "svg")])
async def test_a_view_is_written_here_and_never_over_another_one(
    collapsed: Path,
    until: Until,
    seen: Seen,
    key: str,
    suffix: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    async with Microscope(Fleet(collapsed)).run_test(size=(120, 40)) as pilot:
        await read_until(pilot, until, seen, "#verdict", "CRITICAL")
        for number in (1, 2):
            await pilot.press(key)
            await until(pilot, lambda n=number: len(list(here.iterdir())) == n, "written")
            await until(pilot, lambda: "written: " in seen(pilot, "#keys"), "said")
            name = f"collapse-0-450-main{'-2' * (number == 2)}.{suffix}"
            await until(pilot, lambda n=name: f"{n} in /" in seen(pilot, "#keys"), "its path")
        assert [path.parent for path in pilot.app.session.written] == [here, here]  # type: ignore[attr-defined]
        first, second = sorted(here.iterdir(), key=lambda path: len(path.name))
        assert first.name == f"collapse-0-450-main.{suffix}"
        assert second.name == f"collapse-0-450-main-2.{suffix}"
        text = first.read_text()
        if suffix == "json":
            assert json.loads(text)["step"] == 450
        elif suffix == "csv":
            assert len(text.splitlines()) == 1 + 5 * 8
        else:
            assert "Router collapse" in text.replace("\N{NO-BREAK SPACE}", " ")


async def test_a_folder_that_cannot_be_written_is_said(
    collapsed: Path, until: Until, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("microscope_tui.app.out.write_new", refused)
    async with Microscope(Fleet(collapsed)).run_test(size=(120, 40)) as pilot:
        await read_until(pilot, until, seen, "#verdict", "CRITICAL")
        await pilot.press("w")
        await until(pilot, lambda: "Permission denied" in seen(pilot, "#keys"), "said")


async def test_the_next_sitting_looks_as_the_last_one(
    collapsed: Path, until: Until, seen: Seen
) -> None:
    keep = Preferences(remember=True)
    app = Microscope(Fleet(collapsed), preferences=keep)
    async with app.run_test(size=(120, 40)) as pilot:
        await read_until(pilot, until, seen, "#verdict", "CRITICAL")
        await pilot.press("a", "A", "s", "c", "x", "slash", *"L", "enter")
    again = Microscope(Fleet(collapsed), preferences=keep)
    async with again.run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: "CRITICAL" in seen(pilot, "#verdict"), "judged")
        assert again.session.look == app.session.look
        assert again.session.axis == app.session.axis
        assert again.session.filter.text == "L"
        assert again.session.selected == 3
        assert again.session.seen == app.session.seen != {}
        assert " seen" in seen(pilot, "#verdict")


async def test_nothing_is_kept_unless_it_is_wanted(
    collapsed: Path, until: Until, seen: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    async with Microscope(Fleet(collapsed)).run_test(size=(120, 40)) as pilot:
        await read_until(pilot, until, seen, "#verdict", "CRITICAL")
        await pilot.press("s")
    assert not (tmp_path / "state").exists()


async def test_the_bell_rings_for_a_new_critical_alert_and_only_if_asked(
    collapsed: Path, until: Until, seen: Seen
) -> None:
    rung: dict[bool, int] = {}
    for bell in (False, True):
        app = Microscope(Fleet(collapsed), preferences=Preferences(bell=bell))
        async with app.run_test(size=(120, 40)) as pilot:
            await read_until(pilot, until, seen, "#verdict", "CRITICAL")
            app.session.has_new_critical()
            watch = app.session.watch
            assert watch is not None
            assert watch.diagnosis is not None
            first = watch.diagnosis.episodes[0]
            known, app.session._rung = app.session._rung, set()
            rung[bell] = app.session.has_new_critical()
            assert app.session.has_new_critical() is False
            assert bell is (known is not None)
            assert first.rule == "COLLAPSE"
    assert rung == {False: False, True: True}


async def test_own_keys_work_and_are_shown(collapsed: Path, until: Until, seen: Seen) -> None:
    own = Preferences(keymap={"layer.next": "n,down", "filter.next": "j"})
    async with Microscope(Fleet(collapsed), preferences=own).run_test(size=(120, 60)) as pilot:
        app = await read_until(pilot, until, seen, "#verdict", "CRITICAL")
        await pilot.press("n", "n")
        assert app.session.selected == 2
        await pilot.press("question_mark")
        row = next(x for x in seen(pilot, "#help").split("\n") if "next layer" in x)
        assert row.split()[:2] == ["n", "↓"]


def test_the_copy_is_osc_52_in_a_real_terminal(terminal: Any, collapsed: Path) -> None:
    screen = terminal(collapsed)
    screen.wait_for("450 finished")
    screen.wait_for("CRITICAL")
    screen.press("a")
    screen.wait_for("▶ L4")
    screen.press("Yr")
    screen.wait_for("copied")
    sent = screen.output.split(b"\x1b]52;c;")[1].split(b"\a")[0].split(b"\x1b")[0]
    assert base64.b64decode(sent).startswith(b"L4 step 450: ")
