"""The config file: other limits for the rules, used by everything that judges, and said."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.commands.config import changes_in, default_config, limits_of
from microscope_tui.diagnosis.own_limits import changed_limits
from microscope_tui.diagnosis.thresholds import DEFAULTS

Run = Callable[..., Any]


@pytest.fixture
def overflow(write_log: Any, make_header: Any, make_step: Any, balanced: Any) -> Path:
    """A run that drops 8 % of its tokens."""
    steps = [
        make_step(n, [balanced()] * 3, 2048, router={"drop_rate": [0.08] * 3})
        for n in range(1, 301)
    ]
    return write_log([make_header(), *steps])  # type: ignore[no-any-return]


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "config.toml"
        path.write_text(text)
        return path

    return write


def test_other_limits_change_the_verdict_and_are_said(
    microscope: Run, overflow: Path, config: Any
) -> None:
    assert microscope("check", overflow).returncode == 1
    path = config("[rules.drops]\nwarn = 0.1\n[somebody.else]\nkey = 1\n")
    done = microscope("check", overflow, "--config", path)
    assert done.returncode == 0
    assert f"note: limits changed by {path}: DROPS warn 0.1 instead of 0.05" in done.stdout
    stricter = config("[rules.DROPS]\ncritical = 0.06\n")
    assert microscope("check", overflow, "--config", stricter).returncode == 2


def test_the_file_in_the_configuration_folder_holds_for_every_command(
    microscope: Run, overflow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "mine"))
    path = default_config()
    if tmp_path not in path.parents:
        pytest.skip("this system keeps configuration elsewhere")
    for command in (["snapshot"], []):
        assert "dropped" in microscope(*command, overflow).stdout.lower()
    path.parent.mkdir(parents=True)
    path.write_text("[rules.DROPS]\nwarn = 0.1\n")
    report = json.loads(microscope("check", overflow, "--json").stdout)["runs"][0]
    assert (report["exit_code"], report["findings"]) == (0, [])
    assert "DROPS warn 0.1 instead of 0.05" in report["notes"][0]
    for command in (["snapshot"], []):
        assert "dropped tokens" not in microscope(*command, overflow).stdout.lower()
    assert "warn = 0.1 (by default 0.05)" in microscope("explain", "drops").stdout
    path.write_text("[rules")
    for command in (["check"], ["snapshot"], []):
        assert microscope(*command, overflow).returncode == 64


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[rules.DROPS\n", "is no TOML: Expected ']'"),
        ("x = 1\n[rules.DROPS]\nwarn = = 2\n", "at line 3"),
        ("[rules.DROP]\nwarn = 1\n", "[rules.DROP]: no such rule; there are METER"),
        ("[rules.DROPS]\nwarm = 1\n", "warm: no such limit; there are warn, critical"),
        ('[rules.DROPS]\nwarn = "x"\n', "give a number from 0 on, like 0.05"),
        ("rules = 3\n", "rules: is no table; write [rules.NAME]"),
        ("[rules]\nDROPS = 3\n", "rules.DROPS: is no table"),
    ],
)
def test_a_file_that_says_nonsense_is_a_usage_error_with_its_place(
    microscope: Run, overflow: Path, config: Any, text: str, words: str
) -> None:
    path = config(text)
    done = microscope("check", overflow, "--config", path)
    assert done.returncode == 64
    assert f"{path}: " in done.stderr
    assert words in done.stderr
    assert done.stdout == ""


def test_a_file_that_is_named_has_to_be_there(
    microscope: Run, overflow: Path, tmp_path: Path
) -> None:
    done = microscope("check", overflow, "--config", tmp_path / "none.toml")
    assert done.returncode == 64
    assert "no such file; name a TOML file with [rules.NAME] tables" in done.stderr
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    assert "is no UTF-8 text" in microscope("check", overflow, "--config", binary).stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_said(microscope: Run, overflow: Path, config: Any) -> None:
    path = config("")
    path.chmod(0)
    assert "cannot be read" in microscope("check", overflow, "--config", path).stderr


def test_a_file_without_rules_changes_nothing(config: Any) -> None:
    assert limits_of(config("[theme]\ncolor = 1\n")) == (DEFAULTS, ())
    assert changes_in(changed_limits({"DROPS": {"warn": 0.05}})) == []
