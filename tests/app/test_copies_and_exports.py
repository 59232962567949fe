"""What is copied and written out of a screen, and the view that is kept of a folder.

A copied text reads well without the screen, and is safe to paste.
"""

import base64
import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, strategies as st
from msgspec.structs import replace

from microscope_tui.diagnosis import Advice
from microscope_tui.draw.steady import SteadyLevels
from microscope_tui.kit.out import MOST_BYTES, _clean, verdict_text
from microscope_tui.kit.rows import Rows
from microscope_tui.kit.session import Preferences
from microscope_tui.watch import RunView, view_of
from tests.app.pilot import open_app, running
from tests.conftest import open_log


@pytest.fixture(scope="module")
def view(collapsed: Path) -> RunView:
    return replace(view_of(open_log(collapsed / "metrics.jsonl")), name="collapse")


def test_a_verdict_is_what_why_and_what_next_in_the_words_of_the_screen(view: RunView) -> None:
    finding, advice = view.alerts[0]
    assert verdict_text(view, view.worst).splitlines() == [
        "collapse step 450 (finished): critical COLLAPSE",
        f"Verdict: {advice.cause_first(advice.verdict)}",
        f"Why: {advice.why}",
        f"Next: {advice.next}",
    ]
    assert f"since step {finding.onset:,}" in verdict_text(view, view.worst)
    twice = replace(view, findings=[*view.findings, view.findings[0]])
    first, *_ = verdict_text(twice, twice.worst).splitlines()
    assert first.endswith("critical COLLAPSE (1 of 2 alerts)")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda view: replace(view, findings=[]), "5 layers healthy, lowest balance .0"),
        (
            lambda view: replace(view, log=replace(view.log, error="permission denied")),
            "permission denied",
        ),
    ],
)
def test_without_a_finding_it_is_one_line(view: RunView, change: Any, text: str) -> None:
    changed = change(view)
    found = verdict_text(changed, None)
    assert found.startswith(f"collapse step 450 (finished): {text}")
    assert "\n" not in found


@given(st.lists(st.text(st.characters(exclude_categories=())), min_size=1, max_size=6))
def test_no_text_holds_what_a_terminal_obeys(lines: list[str]) -> None:
    text = _clean(*lines)
    assert text.count("\n") == len(lines) - 1
    categories = {unicodedata.category(char) for char in text if char != "\n"}
    assert not categories & {"Cc", "Cf", "Cs", "Zl", "Zp"}


@pytest.mark.parametrize("char", ["x", "é", "界", "\N{CHEQUERED FLAG}"])
def test_a_text_is_never_longer_than_a_clipboard_takes(view: RunView, char: str) -> None:
    long = Advice(*[char * 5000] * 4)
    text = verdict_text(view, (view.findings[0][0], long))
    assert 3000 < len(text.encode()) <= MOST_BYTES
    assert text.endswith("…")


async def test_a_copy_goes_through_the_terminal(collapsed: Path) -> None:
    async with open_app(collapsed, "Y", size=(120, 40)) as app:
        head = "collapse-0 step 450 (finished): critical COLLAPSE"
        assert app.app.clipboard.startswith(head)
        assert f"copied: {head}" in app.text("keys")


async def test_of_a_log_that_cannot_be_read_only_a_chosen_alert_is_copied(
    collapsed: Path,
) -> None:
    async with open_app(collapsed, size=(120, 40)) as app:
        app.watch.error = "permission denied"
        await app.press("Y")
        assert app.app.clipboard == "collapse-0 step 450 (finished): permission denied"
        await app.press("3", "Y")
        assert "critical COLLAPSE" in app.app.clipboard


@pytest.mark.parametrize(("key", "suffix"), [("w", "csv"), ("W", "json"), ("S", "svg")])
async def test_a_view_is_written_here_and_never_over_another_one(
    collapsed: Path, key: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = [f"collapse-0-450-main{number}.{suffix}" for number in ("", "-2")]
    async with open_app(collapsed, size=(120, 40)) as app:
        for name in names:
            await app.press(key)
            await app.sees(f"written: {name} in /", "keys")
        assert app.session.written == [tmp_path / name for name in names]
        text = (tmp_path / names[0]).read_text()
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
        if suffix == "json":
            assert json.loads(text)["step"] == 450
        elif suffix == "csv":
            assert len(text.splitlines()) == 1 + 5 * 8
        else:
            assert "Router collapse" in text.replace("\N{NO-BREAK SPACE}", " ")


async def test_a_folder_that_cannot_be_written_is_told(collapsed: Path, monkeypatch: Any) -> None:
    refused = mock.Mock(side_effect=PermissionError(13, "Permission denied"))
    monkeypatch.setattr("microscope_tui.kit.out.write_new", refused)
    async with open_app(collapsed, "w", size=(120, 40)) as app:
        await app.sees("cannot write here: Permission denied", "keys")


async def test_a_picture_from_a_session_of_16_colours_is_in_truecolor(
    collapsed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    colours = {}
    for system in ("standard", "truecolor"):
        async with running(collapsed, (120, 40), system=system) as app:
            await app.is_judged()
            app.session.steady = SteadyLevels()  # nothing of what was drawn on the way
            await app.redraw()
            cells = app.screen.query_one("Tiles").query(Rows)
            before = [list(part._strips) for part in cells]
            await app.press("S")
            await app.sees("written: ", "keys")
            assert [list(part._strips) for part in cells] == before
            text = app.session.written[0].read_text()
            colours[system] = set(re.findall("#[0-9a-f]{6}", text))
    assert colours["standard"] == colours["truecolor"]
    assert "#1f4a80" in colours["standard"]  # a starving expert, by the stop of its ramp


async def test_the_next_session_looks_as_the_last_one(
    collapsed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    remember = Preferences(remember=True)
    async with open_app(collapsed, "a", "A", "s", "c", "x", preferences=remember) as app:
        await app.enter("/L")
    async with open_app(collapsed, preferences=remember) as again:
        last, now = app.session, again.session
        assert (now.look, now.axis, now.filter) == (last.look, last.axis, "L")
        assert now.selected == 3
        assert now.seen == last.seen != {}
        assert " seen" in again.text("verdict")


async def test_nothing_is_kept_unless_it_is_wanted(
    collapsed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    async with open_app(collapsed, "s"):
        pass
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("bell", [False, True])
async def test_the_bell_rings_once_for_a_new_critical_alert_if_it_is_on(
    make_run: Callable[..., Path], append: Callable[..., None], bell: bool
) -> None:
    log = make_run(steps=range(1, 150), sick={0: range(999)})  # an alert that is there at first
    async with open_app(log, preferences=Preferences(bell=bell, interval_s=0.05)) as app:
        await app.until(lambda: app.screen._redraws._shown, "the first look")  # type: ignore[attr-defined]
        rung = []
        app.app.bell = lambda: rung.append(app.newest_step)  # type: ignore[method-assign]
        append(log, range(150, 260), sick={0: range(999), 1: range(999)})
        await app.reads(259)
        await app.until(lambda: len(app.view().alerts) and not app.watch.unread, "the alert")
        await app.sees("step 259", "header")
        await app.pause(0.15)
        assert len(rung) == bell


async def test_custom_keys_work_and_are_shown(collapsed: Path) -> None:
    keymap = Preferences(keymap={"layer.next": "n,down"})
    async with open_app(collapsed, "g", "n", "n", preferences=keymap, size=(120, 60)) as app:
        assert app.session.selected == 2
        await app.press("?")
        row = next(line for line in app.text("help").split("\n") if "next layer" in line)
        assert row.split()[:2] == ["n", "↓"]


def test_a_copy_is_osc_52_in_a_real_terminal(terminal: Any, collapsed: Path) -> None:
    screen = terminal(collapsed)
    screen.wait_for("450 finished", "CRITICAL")
    screen.press("Y")
    screen.wait_for("copied")
    sent = screen.output.split(b"\x1b]52;c;")[1].split(b"\a")[0].split(b"\x1b")[0]
    assert base64.b64decode(sent).startswith(b"collapse-0 step 450 ")
