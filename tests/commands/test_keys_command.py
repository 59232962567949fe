"""``keys`` prints every binding by its id, with the keys as the config file takes them."""

import pytest
from textual.binding import Binding

from microscope_tui.app import keymap_of
from microscope_tui.app import keys as all_keys
from microscope_tui.commands import keys

HELP = Binding("question_mark,comma", "help", id="app.help", tooltip="help")
SCREENS = {
    "main": [
        Binding("up,k", "move(-1)", "layer", id="layer.previous", tooltip="previous layer"),
        Binding("left_square_bracket", "step(-1)", id="time.back", tooltip="one step back"),
        HELP,
    ],
    "layer": [Binding("escape", "back", "back", id="screen.back"), HELP],
}


@pytest.fixture
def screens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(all_keys, "all_bindings", lambda _: SCREENS)


@pytest.mark.usefixtures("screens")
def test_every_binding_of_every_screen_has_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert keys() == 0
    printed = capsys.readouterr()
    blocks = printed.out.split("\n\n")
    assert [block.splitlines()[0] for block in blocks] == ["main screen", "layer screen"]
    for block, bindings in zip(blocks, SCREENS.values(), strict=True):
        assert [line.split()[0] for line in block.splitlines()[1:]] == [b.id for b in bindings]
    assert "  layer.previous  up  k     previous layer" in printed.out
    assert "  time.back       [         one step back" in printed.out
    assert "config.toml changes them" in printed.err


def test_what_is_printed_can_be_written_into_the_config_file(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert keys() == 0
    for block in capsys.readouterr().out.split("\n\n"):
        name, *lines = block.splitlines()
        screen = {one.id: one for one in all_keys.all_bindings()[name.split()[0]]}
        for line in lines:
            id_, written, *_ = (part for part in line.split("  ") if part)
            assert keymap_of({id_.strip(): written.strip()}, {name: [screen[id_.strip()]]})
