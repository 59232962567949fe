"""``keys`` prints every binding by its id, with the keys as the config file takes them."""

import json

import pytest
from textual.binding import Binding

from microscope_tui.app import keymap_of, keys
from microscope_tui.commands import keys_command, keys_json, keys_text

HELP = Binding("question_mark,comma", "help", "help", id="app.help")
SCREENS = {
    "main": [
        Binding("up,k", "move(-1)", "layer", id="layer.previous", tooltip="previous layer"),
        Binding("left_square_bracket", "step(-1)", "one step back", id="time.back"),
        HELP,
    ],
    "layer": [Binding("escape", "back", "back", id="screen.back"), HELP],
}


@pytest.fixture(autouse=True)
def _screens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "screens", lambda: SCREENS, raising=False)


def test_every_binding_of_every_screen_has_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert keys_command() == 0
    printed = capsys.readouterr()
    blocks = printed.out.split("\n\n")
    assert [block.splitlines()[0] for block in blocks] == ["main screen", "layer screen"]
    for block, bindings in zip(blocks, SCREENS.values(), strict=True):
        assert [line.split()[0] for line in block.splitlines()[1:]] == [b.id for b in bindings]
    assert "  layer.previous  up  k     previous layer" in printed.out
    assert "  time.back       [         one step back" in printed.out
    assert "config.toml changes them" in printed.err


def test_the_same_as_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert keys_command(as_json_=True) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    main, layer = json.loads(printed.out)["screens"]
    assert (main["screen"], layer["screen"]) == ("main", "layer")
    back = next(one for one in main["bindings"] if one["id"] == "time.back")
    assert back == {"id": "time.back", "keys": ["["], "does": "one step back"}


def test_what_is_printed_can_be_written_into_the_config_file() -> None:
    for screen in keys_json(SCREENS)["screens"]:
        table = {one["id"]: ",".join(one["keys"]) for one in screen["bindings"]}
        mine = keymap_of(table, SCREENS)
        for binding in SCREENS[screen["screen"]]:
            assert binding.id is not None
            assert mine[binding.id] == binding.key


def test_a_screen_without_keys_is_only_a_name() -> None:
    assert keys_text({"empty": []}) == "empty screen"
    assert keys_text({}) == ""


def test_the_real_keys_are_printed_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    assert keys_command() == 0
    assert "app.quit" in capsys.readouterr().out
