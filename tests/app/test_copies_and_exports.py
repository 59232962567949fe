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
from microscope_tui.kit.out import MOST_BYTES, _clean, row_text, value_text, verdict_text
from microscope_tui.kit.rows import Rows
from microscope_tui.kit.session import Preferences
from microscope_tui.watch import LayerView, RunView, view_of
from tests.app.pilot import open_app, running
from tests.conftest import open_log


@pytest.fixture(scope="module")
def view(collapsed: Path) -> RunView:
    return replace(view_of(open_log(collapsed / "metrics.jsonl")), name="collapse")


@pytest.fixture
def sick(view: RunView) -> LayerView:
    return min(view.layers, key=lambda layer: layer.balance or 0.0)


def test_a_verdict_is_what_why_and_what_next_in_the_words_of_the_screen(view: RunView) -> None:
    finding, advice = view.alerts[0]
    assert verdict_text(view).splitlines() == [
        "collapse step 450 (finished): critical COLLAPSE",
        f"Verdict: {advice.cause_first(advice.verdict)}",
        f"Why: {advice.why}",
        f"Next: {advice.next}",
    ]
    assert f"since step {finding.onset:,}" in verdict_text(view)
    twice = replace(view, findings=[*view.findings, view.findings[0]])
    assert verdict_text(twice).splitlines()[0].endswith("critical COLLAPSE (1 of 2 alerts)")


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
    found = verdict_text(change(view))
    assert found.startswith(f"collapse step 450 (finished): {text}")
    assert "\n" not in found


def test_a_row_is_one_line_with_its_numbers_and_its_alert(view: RunView, sick: LayerView) -> None:
    text = row_text(sick, view)
    assert text.startswith(f"{sick.router.name} step 450: balance c .0")
    assert " of 8 experts effective, top-2), entropy " in text
    assert " of 2.08, max load " in text
    assert text.endswith(f"critical COLLAPSE since {view.alerts[0][0].onset}")
    assert "\n" not in text


def test_a_healthy_row_has_no_alert_as_far_as_that_is_known(view: RunView) -> None:
    layer = view.layers[0]
    assert row_text(layer, view).endswith(", no alert")
    early = replace(view, judging=replace(view.judging, share=0.5, last_step=220))
    assert row_text(layer, early).endswith(", no alert up to step 220")


def test_a_row_leaves_out_what_is_not_measured_and_shows_drops_as_screens_do(view: RunView) -> None:
    nothing: dict[str, Any] = dict.fromkeys(("balance", "entropy", "max_load", "drop_rate"))
    layer = view.layers[0]
    assert row_text(replace(layer, **nothing), replace(view, record=None)) == (
        f"{layer.router.name} step 0: no alert"
    )
    for rate, text in ((0.12, "12%"), (0.001, "<1%"), (float("nan"), "NaN")):
        assert f", dropped {text}, " in row_text(replace(layer, drop_rate=rate), view)
    assert ", nothing dropped, " in row_text(replace(layer, drop_rate=0.0), view)


def test_a_value_has_all_its_digits_and_is_empty_if_there_is_none(sick: LayerView) -> None:
    assert float(value_text(sick)) == sick.balance
    assert [float(value_text(sick, expert)) for expert in range(8)] == list(sick.load)
    assert value_text(replace(sick, balance=None)) == ""
    assert value_text(replace(sick, load=None), 0) == ""
    assert value_text(sick, 8) == value_text(sick, -1) == ""


@given(st.lists(st.text(st.characters(exclude_categories=())), min_size=1, max_size=6))
def test_no_text_holds_what_a_terminal_obeys(lines: list[str]) -> None:
    text = _clean(*lines)
    assert text.count("\n") == len(lines) - 1
    categories = {unicodedata.category(char) for char in text if char != "\n"}
    assert not categories & {"Cc", "Cf", "Cs", "Zl", "Zp"}


@pytest.mark.parametrize("char", ["x", "é", "界", "\N{CHEQUERED FLAG}"])
def test_a_text_is_never_longer_than_a_clipboard_takes(view: RunView, char: str) -> None:
    long = Advice(*[char * 5000] * 4)
    text = verdict_text(replace(view, findings=[(view.findings[0][0], long)]))
    assert 3000 < len(text.encode()) <= MOST_BYTES
    assert text.endswith("…")


async def test_a_copy_goes_through_the_terminal(collapsed: Path) -> None:
    async with open_app(collapsed, "a", "right", size=(120, 40)) as app:
        for key, start in {
            "v": "collapse-0 step 450 (finished): critical COLLAPSE",
            "r": "L4 step 450: ",
            "x": "",
        }.items():
            await app.press("Y")
            assert "verdict" in app.text("keys")
            await app.press(key)
            assert app.app.clipboard.startswith(start)
            assert "copied" in app.text("keys")
        assert float(app.app.clipboard) >= 0.0
        await app.press("Y", "escape")
        assert "copied" not in app.text("keys")


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
    keymap = Preferences(keymap={"layer.next": "n,down", "filter.next": "j"})
    async with open_app(collapsed, "g", "n", "n", preferences=keymap, size=(120, 60)) as app:
        assert app.session.selected == 2
        await app.press("?")
        row = next(line for line in app.text("help").split("\n") if "next layer" in line)
        assert row.split()[:2] == ["n", "↓"]


def test_a_copy_is_osc_52_in_a_real_terminal(terminal: Any, collapsed: Path) -> None:
    screen = terminal(collapsed)
    screen.wait_for("450 finished", "CRITICAL")
    screen.press("a")
    screen.wait_for("▶ L4")
    screen.press("Yr")
    screen.wait_for("copied")
    sent = screen.output.split(b"\x1b]52;c;")[1].split(b"\a")[0].split(b"\x1b")[0]
    assert base64.b64decode(sent).startswith(b"L4 step 450: ")
