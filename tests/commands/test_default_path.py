"""Without a path every command that reads runs looks into ``logs``, as the viewer does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


@pytest.mark.parametrize("command", ["check", "snapshot", ""])
def test_without_a_path_the_newest_run_in_logs_is_read(
    microscope: Run, scenario: Any, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    run = scenario("collapse", routers=3, steps=450)
    run.rename(run.parent / "logs")
    monkeypatch.chdir(run.parent)
    done = microscope(*([command] if command else []))
    assert "Router collapse in L3" in done.stdout, done.stderr
    assert done.returncode == (2 if command == "check" else 0)


@pytest.mark.parametrize("command", ["check", "snapshot", ""])
def test_a_missing_logs_folder_is_named(
    microscope: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = microscope(*([command] if command else []))
    assert done.returncode == 3
    assert "logs: no such file or folder" in done.stderr


def test_options_alone_need_no_path(
    microscope: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "logs: no such file or folder" in microscope("check", "--json").stderr
    assert "logs: no such file or folder" in microscope("snapshot", "--screen", "runs").stderr


@pytest.mark.parametrize("command", ["", "check", "snapshot", "demo", "explain", "keys", "doctor"])
def test_help_prints_no_empty_default_and_every_command_a_version(
    microscope: Run, command: str
) -> None:
    given = [command] if command else []
    shown = microscope(*given, "--help").stdout
    assert "Usage: moe-microscope" in shown
    assert '[default: ""]' not in shown
    assert "[default: False]" not in shown
    assert microscope(*given, "--version").stdout[0].isdecimal()
