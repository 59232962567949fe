"""Custom keys: an accepted key has one meaning on every screen, and others are refused."""

import tomllib
from unicodedata import normalize

import pytest
from hypothesis import given, strategies as st
from textual._ansi_sequences import ANSI_SEQUENCES_KEYS
from textual._xterm_parser import XTermParser
from textual.binding import Binding
from textual.events import Key
from textual.keys import Keys

from microscope_tui.draw.glyphs import Glyphs
from microscope_tui.draw.spans import plain
from microscope_tui.kit.key_line import last_line
from microscope_tui.kit.keymap import BadKey, conflicts, keymap_of
from microscope_tui.kit.keys import all_bindings, shown_key, with_keymap, written_key
from microscope_tui.runlog import safe_text

QUIT = [
    Binding("question_mark", "help", "help", id="app.help"),
    Binding("q", "quit", id="app.quit"),
]
MOVES = [
    Binding("up,k", "move(-1)", "layer", id="layer.previous", key_display="↑↓"),
    Binding("down,j", "move(1)", "next layer", id="layer.next", show=False),
    Binding("pageup", "page(-1)", "one page up", id="layer.page_up", show=False),
    Binding("left_square_bracket", "step(-1)", "step", id="time.back", key_display="[ ]"),
    Binding("right_square_bracket", "step(1)", "next logged step", id="time.on", show=False),
]
SCREENS = {
    "main": [*MOVES, Binding("a", "next_alert", "alert", id="alert.next"), *QUIT],
    "layer": [*MOVES, Binding("escape", "back", "back", id="screen.back"), *QUIT],
    "help": [Binding("escape,q,enter", "close", "close", id="help.close")],
}


def keymap(text: str) -> dict[str, str]:
    return dict(keymap_of(tomllib.loads(f"[keys]\n{text}")["keys"], SCREENS))


def refusal(text: str) -> str:
    with pytest.raises(BadKey) as caught:
        keymap(text)
    return str(caught.value)


def test_the_keys_of_the_microscope_are_in_no_conflict() -> None:
    assert conflicts(all_bindings(), {}) == []
    assert keymap_of({}, all_bindings()) == {}


@pytest.mark.parametrize(
    "text",
    ['layer.next = "n,down"', '"layer.next" = "n,down"', '[keys.layer]\nnext = " n , down,n"'],
)
def test_an_id_may_be_written_with_and_without_quotes(text: str) -> None:
    assert keymap(text) == {"layer.next": "n,down"}


@pytest.mark.parametrize(
    ("written", "name"),
    [
        *(("J", "J"), ("é", "é"), ("<", "less_than_sign"), ("solidus", "slash")),
        *(("comma", "comma"), ("PageUp", "pageup"), ("shift+tab", "shift+tab")),
        ("shift+ctrl+up", "ctrl+shift+up"),
    ],
)
def test_a_key_gets_the_name_that_textual_has_for_it(written: str, name: str) -> None:
    assert keymap(f'layer.page_up = "{written}"') == {"layer.page_up": name}


def test_every_printable_character_has_the_name_that_its_press_has() -> None:
    characters = [chr(code) for code in range(0x21, 0x7F)]
    pressed = [event for one in characters for event in XTermParser().feed(one)]
    assert [event.character for event in pressed if isinstance(event, Key)] == characters
    for event in pressed:
        written = "comma" if event.character == "," else event.character
        assert keymap_of({"x": written}, {"main": [Binding("f1", "x", id="x")]})["x"] == event.key


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('layer.nxt = "n"', "layer.nxt: no such id; did you mean layer.next"),
        ('nonsense = "n"', "nonsense: no such id; `moe-microscope keys` prints all"),
        ('layer = "n"', "layer: no such id"),
        ('layer.next.more = "n"', "layer.next.more: no such id; did you mean layer.next"),
        ("layer.next = 3", "layer.next is 3: write at least one key"),
        ('layer.next = ["n"]', "layer.next is ['n']: write at least one key"),
        ('layer.next = " "', "layer.next is ' ': write at least one key, like"),
        ('app.quit = ""', "app.quit is '': write at least one key"),
        ('layer.next = "ctrl+c"', "ctrl+c always quits; write another key"),
        ('app.quit = "Q,ctrl+q"', "ctrl+q always quits"),
        ('layer.next = "\\u001b"', 'terminals do not send a key "\N{REPLACEMENT CHARACTER}"'),
        ('"\\u001b[2J" = "n"', "\N{REPLACEMENT CHARACTER}[2J: no such id"),
    ],
)
def test_an_impossible_key_is_refused_with_what_to_write(text: str, words: str) -> None:
    assert words in refusal(text)


@pytest.mark.parametrize(
    "key", ["", "nn", "shift+n", "ctrl+P", "ctrl+i", "ctrl+@", "hyp+n", "ctrl+", "return", "f13"]
)
def test_a_key_that_no_terminal_sends_is_refused(key: str) -> None:
    assert f'terminals do not send a key "{key}"' in refusal(f'layer.next = "n,{key}"')


def test_a_key_with_two_meanings_is_refused_with_all_of_them() -> None:
    message = refusal('layer.next = "a"\ntime.back = "?"')
    for part in (
        "a: layer.next and alert.next on the main screen",
        "?: time.back and app.help on the main screen",
        "?: time.back and app.help on the layer screen",
    ):
        assert part in message
    assert "a: layer.next and alert.next on the layer screen" not in message


def test_the_ids_of_the_former_chart_of_several_runs_are_other_names_on_screen_6() -> None:
    every = all_bindings()
    assert keymap_of({"together": {"previous": "u", "next": "i", "axis": "U"}}, every) == {
        "number.previous": "u",
        "number.next": "i",
        "time.axis": "U",
    }
    both = {"together.axis": "U", "time.axis": "U", "together.next": "u", "number.next": "i"}
    assert keymap_of(both, every) == {"time.axis": "U", "number.next": "i"}
    assert keymap_of({"together.axis": "b", "together.next": "i"}, every) == {"number.next": "i"}
    with pytest.raises(BadKey, match="write at least one key"):
        keymap_of({"together.next": ""}, every)


def test_only_the_keys_change_and_what_is_shown_of_them() -> None:
    mine = keymap('time.back = "b,left"\nlayer.page_up = "pageup,u"')
    before, after = SCREENS["main"], with_keymap(SCREENS["main"], mine)
    changed = {new.id: new.key for old, new in zip(before, after, strict=True) if new != old}
    assert changed == {"layer.page_up": "pageup,u", "time.back": "b,left"}


@pytest.mark.parametrize(
    ("text", "pair", "layers"),
    [
        ("", "[ ] step", "↑↓ layer"),
        ('time.on = "n"', "[ n step", "↑↓ layer"),
        ('time.back = "b"\ntime.on = "n,right_square_bracket"', "b n step", "↑↓ layer"),
        ('layer.next = "pagedown"', "[ ] step", "↑/page down layer"),
    ],
)
def test_a_place_in_the_last_line_for_two_bindings_shows_the_keys_of_both(
    text: str, pair: str, layers: str
) -> None:
    own = with_keymap(all_bindings()["main"], keymap(text))
    line = plain(last_line(own, Glyphs.BRAILLE, 160))
    for part in (pair, layers, "⏎ open", "r runs"):
        assert f" {part}  " in line


def test_every_key_that_is_accepted_comes_out_of_textuals_parser_in_any_terminal() -> None:
    """No sequence of the kitty protocol (``CSI … u``) is among those that are parsed here."""
    moving = ["1A", "1B", "1C", "1D", "1H", "1F", "2~", "3~", "5~", "6~"]
    moving += ["1P", "1Q", "1R", "1S", "15~", "17~", "18~", "19~", "20~", "21~", "23~", "24~"]
    sequences = [sequence for sequence in ANSI_SEQUENCES_KEYS if not sequence.endswith("u")]
    sequences += [f"\x1b[{m[:-1]};{number}{m[-1]}" for m in moving for number in range(1, 9)]
    sequences += [f"\x1b{chr(code)}" for code in range(0x30, 0x7B) if chr(code).isalnum()]
    sequences += [chr(code) for code in range(0x20, 0x7F)]
    sent = set()
    for sequence in sequences:
        parser = XTermParser()
        events = [*parser.feed(sequence), *parser.feed("")]
        sent |= {event.key for event in events if isinstance(event, Key)}
    modifiers = ["", "alt", "ctrl", "shift", "hyper", "meta", "super"]
    pairs = [f"{a}+{b}+" for a in modifiers[1:] for b in modifiers[1:] if a < b]
    names = [*(k.value for k in Keys), *map(chr, range(0x21, 0x7F))]
    accepted: set[str] = set()
    before = [f"{modifier}+" if modifier else "" for modifier in modifiers] + pairs
    for key in (f"{modifier}{name}" for modifier in before for name in names):
        try:
            mine = keymap_of({"x": key}, {"main": [Binding("f1", "x", id="x")]})
        except BadKey:
            continue
        accepted |= set(mine["x"].split(","))
    assert accepted - sent == set()
    assert len(accepted) > 200


def test_names_of_keys_are_shown_as_people_know_them() -> None:
    known = ["up", "escape", "left_square_bracket", "comma", "ctrl+p", "J", "space"]
    assert [*map(shown_key, known)] == ["↑", "esc", "[", ",", "ctrl+p", "J", "space"]
    assert [*map(written_key, known)] == ["up", "escape", "[", "comma", "ctrl+p", "J", "space"]


@given(st.text(max_size=20))
def test_any_text_is_keys_or_refused(text: str) -> None:
    try:
        mine = keymap_of({"layer.page_up": text}, SCREENS)
    except BadKey as error:
        message = str(error)
    else:
        again = ",".join(written_key(key) for key in mine["layer.page_up"].split(","))
        if text.isascii():  # Textual's names of others do not lead back to the character
            assert keymap_of({"layer.page_up": again}, SCREENS) == mine
        return
    assert safe_text(message, 500) == normalize("NFC", message)


@given(
    st.dictionaries(
        st.sampled_from(sorted({b.id for bs in SCREENS.values() for b in bs if b.id})),
        st.lists(st.sampled_from("abcdefgh[]{}:?1234"), min_size=1, max_size=3).map(",".join),
    )
)
def test_after_remapping_every_key_of_a_screen_means_one_thing(table: dict[str, str]) -> None:
    try:
        mine = keymap_of(table, SCREENS)
    except BadKey:
        return
    for bindings in SCREENS.values():
        owners: dict[str, set[str | None]] = {}
        for one in Binding.make_bindings(with_keymap(bindings, mine)):
            owners.setdefault(one.key, set()).add(one.id)
        assert all(len(ids) == 1 for ids in owners.values())
