"""View settings of a folder are kept for the next session, and can never prevent one."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st
from msgspec.structs import asdict, replace

from microscope_tui.app.remembered import SavedView, load_view, recall, save_view
from microscope_tui.draw.glyphs import Glyphs
from microscope_tui.draw.heat import Look, Measure, Order, Palette
from microscope_tui.draw.time_line import Axis
from microscope_tui.kit.session import DEFAULT, Session
from microscope_tui.watch import Fleet

CHOSEN = SavedView(
    layer="L4",
    measure=Measure.BIAS,
    palette=Palette.CIVIDIS,
    order=Order.LOAD,
    filter="L*",
    axis=Axis.CLOCK,
    smoothing=0.9,
    seen=("COLLAPSE L4 150", "DEAD L2 90"),
    top_k=2,
)
ANYTHING = st.none() | st.text() | st.floats() | st.integers() | st.lists(st.text() | st.none())
in_one_folder = settings(max_examples=60, suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True)
def views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "moe-microscope" / "views"


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path / "logs"


@pytest.fixture
def saved(logs: Path, views: Path) -> Path:
    assert save_view(logs, CHOSEN) is None
    (path,) = views.iterdir()
    return path


def kept(logs: Path) -> SavedView:
    return replace(load_view(logs), logs="")


def test_a_view_is_loaded_as_it_was_saved_until_another_one_is(logs: Path) -> None:
    assert kept(logs) == SavedView()
    for view in (CHOSEN, SavedView()):  # a return to the default is kept too
        assert save_view(logs, view) is None
        assert kept(logs) == view


def test_two_folders_have_views_of_their_own(logs: Path) -> None:
    other = logs.with_name(os.fsdecode(b"caf\xe9"))  # not UTF-8
    save_view(logs, CHOSEN)
    save_view(other, SavedView(layer="x"))
    assert kept(logs) == CHOSEN
    assert kept(other) == SavedView(layer="x")


def test_other_paths_to_a_folder_have_its_view(logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs.mkdir()
    (link := logs.with_name("link")).symlink_to(logs)
    save_view(logs, CHOSEN)
    monkeypatch.chdir(logs)
    for path in (link, Path("."), Path("../logs/")):
        assert kept(path) == CHOSEN


def test_nothing_is_written_unless_something_changed(logs: Path, views: Path, saved: Path) -> None:
    before = saved.stat().st_ino
    assert save_view(logs, replace(CHOSEN)) is None
    assert saved.stat().st_ino == before  # a write would have put a new file there
    saved.unlink()
    assert save_view(logs, SavedView()) is None
    assert not list(views.iterdir())


def test_the_file_is_private_and_names_its_folder(logs: Path, saved: Path) -> None:
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    assert json.loads(saved.read_text())["logs"] == os.path.realpath(logs)


@in_one_folder
@given(
    st.binary(max_size=300)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ).map(lambda value: json.dumps(value).encode())
)
@example(b"")
@example(b"[" * 60_000)
@example(b"9" * 10_000)
@example(b'{"version": 1}' + b" " * 70_000)
def test_any_bytes_in_the_file_count_as_no_file(logs: Path, saved: Path, data: bytes) -> None:
    saved.write_bytes(data)
    assert kept(logs) == SavedView()
    assert save_view(logs, CHOSEN) is None
    assert kept(logs) == CHOSEN


@in_one_folder
@given(st.fixed_dictionaries(dict.fromkeys(asdict(CHOSEN), ANYTHING)))
@example(dict.fromkeys(asdict(CHOSEN), "\x1b[2J\u202e" + "x" * 500))
@example(dict.fromkeys(asdict(CHOSEN), 10**400))
def test_any_values_in_the_file_give_a_view_with_short_texts(
    logs: Path, saved: Path, values: dict[str, Any]
) -> None:
    saved.write_text(json.dumps(json.loads(saved.read_text()) | values))
    view = load_view(logs)
    save_view(logs, CHOSEN)
    assert 0.0 <= view.smoothing <= 1e6
    assert all(isinstance(text, str) for text in (view.filter, view.layer, *view.seen))
    assert max(map(len, (view.filter, view.layer, *view.seen))) <= 200


def test_other_folders_versions_and_huge_files_are_not_used(logs: Path, saved: Path) -> None:
    mine = json.loads(saved.read_text())
    for change, more in (({"logs": "/elsewhere"}, 0), ({"version": 2}, 0), ({}, 1 << 20)):
        saved.write_text(json.dumps(mine | change) + " " * more)
        assert kept(logs) == SavedView()
    saved.unlink()
    os.mkfifo(saved)  # nothing waits for it
    assert kept(logs) == SavedView()


def test_a_choice_that_is_gone_costs_no_other(logs: Path, saved: Path) -> None:
    mine = json.loads(saved.read_text())
    saved.write_text(
        json.dumps(mine | {"measure": "share", "palette": "viridis", "order": "group"})
    )
    session = Session(Fleet(logs), Glyphs.BRAILLE, DEFAULT)
    recall(session)
    assert session.look == Look()
    assert (session.filter, [*session.seen]) == ("L*", [*CHOSEN.seen])
    saved.write_text(json.dumps(mine))
    recall(session)
    assert session.look == Look(Measure.BIAS, Order.LOAD, Palette.CIVIDIS)


def test_the_newest_alerts_stay_seen(logs: Path) -> None:
    keys = tuple(f"COLLAPSE L{n} {n}" for n in range(700))
    save_view(logs, SavedView(seen=keys))
    assert load_view(logs).seen == keys[-500:]


def test_a_view_that_cannot_be_saved_is_reported(
    logs: Path, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved.unlink()
    saved.mkdir()
    assert "view settings are not saved" in str(save_view(logs, CHOSEN))
    assert list(saved.parent.iterdir()) == [saved]  # nothing is left over
    file = tmp_path / "a file where the folder should be"
    file.write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(file))
    assert str(save_view(logs, CHOSEN)).startswith(f"view settings are not saved: {file}")
    assert kept(logs) == SavedView()
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert kept(Path("logs")) == SavedView()
    assert "view settings are not saved" in str(save_view(Path("logs"), CHOSEN))


def test_the_folders_that_were_looked_at_last_are_remembered(logs: Path, views: Path) -> None:
    views.mkdir(parents=True)
    (views / "notes.txt").write_text("not ours")
    for n in range(230):
        old = views / f"{n:016x}.json"
        old.write_text("{}")
        os.utime(old, (n, n))
    save_view(logs, CHOSEN)
    left = {path.name for path in views.iterdir()}
    assert len(left) == 200 + 1
    assert {"notes.txt", f"{229:016x}.json"} <= left
    assert f"{0:016x}.json" not in left
    assert kept(logs) == CHOSEN
