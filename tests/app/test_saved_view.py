"""How a folder was looked at is kept for the next sitting, and can never be in the way of one."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from msgspec.structs import asdict, replace

from microscope_tui.app import SavedView, load_view, save_view
from microscope_tui.lines import Axis, Measure, Order, Palette

CHOSEN = SavedView(
    layer="L4",
    measure=Measure.BIAS,
    palette=Palette.GREY,
    order=Order.LOAD,
    filter="L*",
    axis=Axis.CLOCK,
    smoothing=0.9,
    seen=("COLLAPSE L4 150", "DEAD L2 90"),
)
in_one_folder = settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    return tmp_path / "logs"


def stored(state: Path) -> list[Path]:
    return sorted((state / "views").iterdir()) if (state / "views").exists() else []


def kept(logs: Path, state: Path | None = None) -> SavedView:
    """What is loaded, without the name of its folder."""
    return replace(load_view(logs, state), logs="")


def test_what_was_saved_is_there_again(logs: Path, state: Path) -> None:
    assert kept(logs, state) == SavedView()
    assert save_view(logs, CHOSEN, state) is None
    assert kept(logs, state) == CHOSEN


def test_two_folders_do_not_know_of_each_other(logs: Path, state: Path) -> None:
    other = logs.with_name("other")
    save_view(logs, CHOSEN, state)
    save_view(other, SavedView(layer="x"), state)
    assert kept(logs, state) == CHOSEN
    assert kept(other, state) == SavedView(layer="x")


def test_the_same_folder_by_another_way_has_the_same_view(
    logs: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs.mkdir()
    (link := logs.with_name("link")).symlink_to(logs)
    save_view(logs, CHOSEN, state)
    monkeypatch.chdir(logs)
    for way in (link, Path("."), Path("../logs/")):
        assert kept(way, state) == CHOSEN


def test_nothing_is_written_before_anything_was_chosen(logs: Path, state: Path) -> None:
    assert save_view(logs, SavedView(), state) is None
    assert not state.exists()


def test_nothing_is_written_where_nothing_has_changed(logs: Path, state: Path) -> None:
    save_view(logs, CHOSEN, state)
    (path,) = stored(state)
    before = path.stat()
    assert save_view(logs, replace(CHOSEN), state) is None
    assert path.stat().st_ino == before.st_ino  # a write would have put a new file there


def test_a_return_to_the_default_is_kept_too(logs: Path, state: Path) -> None:
    save_view(logs, CHOSEN, state)
    save_view(logs, SavedView(), state)
    assert kept(logs, state) == SavedView()


def test_the_file_is_its_owners_alone_and_says_whose_view_it_is(logs: Path, state: Path) -> None:
    save_view(logs, CHOSEN, state)
    (path,) = stored(state)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text())["logs"] == os.path.realpath(logs)


def test_the_users_state_folder_is_the_default(
    logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "mine"))
    save_view(logs, CHOSEN)
    found = list(tmp_path.glob("mine/moe-microscope/views/*.json"))
    if not found:
        pytest.skip("this system keeps its state elsewhere")
    assert kept(logs) == CHOSEN


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
def test_any_bytes_in_the_file_count_as_no_file(logs: Path, state: Path, data: bytes) -> None:
    save_view(logs, CHOSEN, state)
    (path,) = stored(state)
    path.write_bytes(data)
    assert kept(logs, state) == SavedView()
    assert save_view(logs, CHOSEN, state) is None
    assert kept(logs, state) == CHOSEN


@in_one_folder
@given(
    st.fixed_dictionaries(
        {
            name: st.none()
            | st.text()
            | st.floats()
            | st.integers()
            | st.lists(st.text() | st.none())
            for name in asdict(CHOSEN)
        }
    )
)
@example(dict.fromkeys(asdict(CHOSEN), "\x1b[2J\u202e" + "x" * 500))
@example(dict.fromkeys(asdict(CHOSEN), 10**400))
def test_any_values_in_the_file_give_a_view_with_short_texts(
    logs: Path, state: Path, values: dict[str, Any]
) -> None:
    save_view(logs, CHOSEN, state)
    (path,) = stored(state)
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    view = load_view(logs, state)
    assert 0.0 <= view.smoothing <= 1e6
    assert isinstance(view.measure, Measure)
    assert all(isinstance(text, str) for text in (view.filter, view.layer, *view.seen))
    assert max(map(len, (view.filter, view.layer, *view.seen))) <= 200


def test_a_file_of_another_folder_or_a_later_version_is_not_used(logs: Path, state: Path) -> None:
    save_view(logs, CHOSEN, state)
    (path,) = stored(state)
    mine = json.loads(path.read_text())
    for change in ({"logs": "/somewhere/else"}, {"version": 2}):
        path.write_text(json.dumps(mine | change))
        assert kept(logs, state) == SavedView()


def test_a_huge_file_is_not_read(logs: Path, state: Path) -> None:
    save_view(logs, CHOSEN, state)
    (path,) = stored(state)
    path.write_text(path.read_text() + " " * (1 << 20))
    assert kept(logs, state) == SavedView()


def test_a_pipe_in_place_of_the_file_is_not_waited_for(logs: Path, state: Path) -> None:
    save_view(logs, CHOSEN, state)
    (path,) = stored(state)
    path.unlink()
    os.mkfifo(path)
    assert kept(logs, state) == SavedView()


def test_the_newest_alerts_stay_seen(logs: Path, state: Path) -> None:
    keys = tuple(f"COLLAPSE L{n} {n}" for n in range(700))
    save_view(logs, SavedView(seen=keys), state)
    assert load_view(logs, state).seen == keys[-500:]


def test_a_folder_that_cannot_be_written_is_said_in_words(logs: Path, state: Path) -> None:
    state.write_text("a file where the folder should be")
    problem = save_view(logs, CHOSEN, state)
    assert problem is not None
    assert problem.startswith(f"view settings are not saved: {state}")
    assert kept(logs, state) == SavedView()


def test_a_save_that_fails_leaves_nothing_behind(logs: Path, state: Path) -> None:
    save_view(logs, CHOSEN, state)
    (path,) = stored(state)
    path.unlink()
    path.mkdir()
    assert "view settings are not saved" in str(save_view(logs, CHOSEN, state))
    assert stored(state) == [path]


def test_a_deleted_working_folder_is_survived(
    tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert kept(Path("logs"), state) == SavedView()
    assert "view settings are not saved" in str(save_view(Path("logs"), CHOSEN, state))


def test_the_folders_that_were_looked_at_last_are_remembered(logs: Path, state: Path) -> None:
    views = state / "views"
    views.mkdir(parents=True)
    (views / "notes.txt").write_text("not ours")
    for n in range(230):
        old = views / f"{n:016x}.json"
        old.write_text("{}")
        os.utime(old, (n, n))
    save_view(logs, CHOSEN, state)
    left = [path.name for path in stored(state)]
    assert len(left) == 200 + 1
    assert "notes.txt" in left
    assert f"{0:016x}.json" not in left
    assert f"{229:016x}.json" in left
    assert kept(logs, state) == CHOSEN


def test_a_path_that_is_no_utf8_has_a_view_too(tmp_path: Path, state: Path) -> None:
    logs = tmp_path / os.fsdecode(b"caf\xe9")
    assert save_view(logs, CHOSEN, state) is None
    assert kept(logs, state) == CHOSEN
