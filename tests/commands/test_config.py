"""The config file: the user's limits, keys and looks; unknown names are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.commands.config import (
    UserConfig,
    ViewConfig,
    default_config,
    keymap_from,
    read_config,
)
from microscope_tui.commands.console import USAGE
from microscope_tui.diagnosis import DEFAULTS, changed_limits
from microscope_tui.draw.heat import Palette
from microscope_tui.sources import rules_of
from tests.conftest import Call, header, step


@pytest.fixture
def overflow(write_log: Any, balanced: Any) -> Path:
    steps = [
        step(n, [balanced(r) for r in range(3)], 2048, router={"drop_rate": [0.08] * 3})
        for n in range(1, 301)
    ]
    return write_log([header(), *steps])  # type: ignore[no-any-return]


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "config.toml"
        path.write_text(text)
        return path

    return write


def test_limits_change_the_verdict_and_are_noted(call: Call, overflow: Path, config: Any) -> None:
    assert call("check", overflow)[0] == 1
    path = config("[rules.drops]\nwarn = 0.1\n")
    code, out, _ = call("check", overflow, "--config", path)
    assert code == 0
    assert f"note: limits changed by {path}: DROPS warn 0.1 instead of 0.05" in out
    stricter = config("[rules.DROPS]\ncritical = 0.06\n")
    assert call("check", overflow, "--config", stricter)[0] == 2


def test_the_file_in_the_configuration_folder_holds_for_every_command(
    call: Call, overflow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "mine"))
    path = default_config()
    if tmp_path not in path.parents:
        pytest.skip("this system keeps configuration elsewhere")
    for command in (["snapshot"], []):
        assert "dropped" in call(*command, overflow)[1].lower()
    path.parent.mkdir(parents=True)
    path.write_text("[rules.DROPS]\nwarn = 0.1\n")
    (report,) = json.loads(call("check", overflow, "--json")[1])["runs"]
    assert (report["exit_code"], report["findings"]) == (0, [])
    assert "DROPS warn 0.1 instead of 0.05" in report["notes"][0]
    for command in (["snapshot"], []):
        assert "dropped tokens" not in call(*command, overflow)[1].lower()
    assert "warn = 0.1 (by default 0.05)" in call("explain", "drops")[1]
    path.write_text("[rule.DROPS]\nwarn = 0.1\n")
    for command in (["check"], ["snapshot"], []):
        code, out, err = call(*command, overflow)
        assert (code, out) == (USAGE, "")
        assert f"{path}: rule: no such table" in err


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[rules.DROPS\n", "not valid TOML: Expected ']'"),
        ("x = 1\n[rules.DROPS]\nwarn = = 2\n", "at line 3"),
        ("[rules.DROP]\nwarn = 1\n", "[rules.DROP]: no such rule; there are METER"),
        ("[rules.DROPS]\nwarm = 1\n", "warm: no such limit; there are warn, critical"),
        ('[rules.DROPS]\nwarn = "x"\n', "give a number from 0 to 1e12, like 0.05"),
        ("[rules.DROPS]\nwarn = 0.3\n", "warn is 0.3 and critical is 0.2: expected warn <="),
        ("rules = 3\n", "rules: is not a table; write [rules.NAME]"),
        ("[rules]\nDROPS = 3\n", "rules.DROPS: is not a table; write [rules.DROPS]"),
        ("keys = 3\n", "keys: is not a table; write [keys] and your keys below it"),
        ("[theme]\ncolor = 1\n", "theme: no such table; there are [rules.NAME], [keys], [view]"),
        ("[drops]\nwarn = 0.1\n", "drops: no such table; write [rules.DROPS]"),
        ("[view]\nx = 1\n", "[view] x: no such key; there are palette, glyphs, color, theme"),
        ('[view]\npalette = "gray"\n', "[view] palette is 'gray': choose one of"),
        ("[view]\ncolor = 8\n", "[view] color is 8: choose one of auto, truecolor, 256, 16, never"),
        ('[view]\ntheme = "white"\n', "[view] theme is 'white': choose one of dark, light"),
        ("[view]\nglyphs = [1]\n", "[view] glyphs is [1]: choose one of auto, braille"),
        ("[view]\nbell = 1\n", "[view] bell is 1: write true or false"),
        ("[import]\nkeys = 1\n", "[import] keys: no such key; there is [import.map]"),
        ("[import.map]\nloss = 1\n", "[import.map] loss: write a pattern as text"),
        ('[import.map]\nloss = "("\n', "[import.map] "),
    ],
)
def test_an_invalid_file_is_a_usage_error_with_its_place(
    config: Any, capsys: pytest.CaptureFixture[str], text: str, why: str
) -> None:
    path = config(text)
    with pytest.raises(SystemExit) as ended:
        read_config(path)
    printed = capsys.readouterr()
    assert ended.value.code == USAGE
    assert f"{path}: " in printed.err
    assert why in printed.err
    assert printed.out == ""


def test_names_in_the_file_cannot_drive_the_terminal(config: Any, capsys: Any) -> None:
    for text in ('["\\u001b[2J"]\n', '[view]\n"\\u001b[2J" = 1\n', '[view]\nglyphs = "\\u001b"\n'):
        with pytest.raises(SystemExit):
            read_config(config(text))
        assert "\x1b" not in capsys.readouterr().err


def test_every_table_is_read_once_into_one_object(config: Any) -> None:
    path = config(
        """
        [rules.DROPS]
        warn = 0.1
        [keys]
        layer.next = "i"
        "time.back" = "u,left_square_bracket"
        [view]
        palette = "cividis"
        glyphs = "ascii"
        color = 256
        theme = "light"
        bell = true
        remember = false
        [import.map]
        loss = ["a/loss", "b/loss"]
        """
    )
    found = read_config(path)
    assert found.limits == found.criteria.limits == changed_limits({"DROPS": {"warn": 0.1}})
    assert found.changes == (f"limits changed by {path}: DROPS warn 0.1 instead of 0.05",)
    assert dict(keymap_from(found)) == {"layer.next": "i", "time.back": "u,left_square_bracket"}
    assert found.rules == rules_of(["loss=a/loss", "loss=b/loss"])
    assert found.view == ViewConfig(
        palette=Palette.CIVIDIS,
        glyphs="ascii",
        color="256",
        theme="light",
        bell=True,
        remember=False,
    )


def test_without_a_file_everything_is_as_it_is_by_default(config: Any) -> None:
    assert not default_config().exists()
    found = read_config()
    assert found == UserConfig(path=default_config())
    assert (found.limits, found.changes, found.keys) == (DEFAULTS, (), {})
    assert (found.view.palette, found.view.bell, found.view.remember) == ("diverging", False, True)
    assert read_config(config("[rules.DROPS]\nwarn = 0.05\n")).changes == ()
    assert keymap_from(found) == {}


def test_a_wrong_key_is_a_usage_error_when_the_screen_opens_and_not_before(
    config: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config('[keys]\nlayer.nxt = "t"\n')
    found = read_config(path)
    with pytest.raises(SystemExit) as ended:
        keymap_from(found)
    assert ended.value.code == USAGE
    why = f"{path}: [keys] layer.nxt: no such id; did you mean layer.next"
    assert why in capsys.readouterr().err


def test_a_file_that_cannot_be_read_as_text_is_refused(call: Call, tmp_path: Path) -> None:
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    for path, why in ((binary, "not UTF-8 text"), (tmp_path, "cannot be read: Is a directory")):
        code, _, err = call("check", tmp_path, "--config", path)
        assert code == USAGE
        assert why in err
