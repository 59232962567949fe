"""Keys of one's own: what is accepted means what it says, and nothing loses its key unnoticed."""

import tomllib
from dataclasses import replace
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st
from textual._ansi_sequences import ANSI_SEQUENCES_KEYS
from textual._xterm_parser import XTermParser
from textual.binding import Binding
from textual.events import Key
from textual.keys import Keys

from microscope_tui.app import BadKey, conflicts, keymap_of, keys, remapped, shown_key, written_key
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
    """The keymap of a config file with these lines in its table."""
    return dict(keymap_of(tomllib.loads(f"[keys]\n{text}")["keys"], SCREENS))


def refusal(text: str) -> str:
    with pytest.raises(BadKey) as caught:
        keymap(text)
    return str(caught.value)


def test_the_keys_of_the_microscope_are_in_no_conflict() -> None:
    assert conflicts(keys.screens(), {}) == []
    assert keymap_of({}, keys.screens()) == {}


@pytest.mark.parametrize(
    "text",
    ['layer.next = "n,down"', '"layer.next" = "n,down"', '[keys.layer]\nnext = " n , down,n"'],
)
def test_an_id_may_be_written_with_and_without_quotes(text: str) -> None:
    assert keymap(text) == {"layer.next": "n,down"}


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("J", "J"),
        ("é", "é"),
        ("+", "plus"),
        ("<", "less_than_sign"),
        ("|", "vertical_line"),
        ("solidus", "slash"),
        ("slash", "slash"),
        ("comma", "comma"),
        ("exclamation_mark", "exclamation_mark"),
        ("PageUp", "pageup"),
        ("space", "space"),
        ("tab", "tab"),
        ("f5", "f5"),
        ("ctrl+P", "ctrl+p"),
        ("shift+tab", "shift+tab"),
        ("shift+ctrl+up", "ctrl+shift+up"),
        ("ctrl+\\\\", "ctrl+backslash"),
    ],
)
def test_a_key_gets_the_name_that_textual_has_for_it(written: str, name: str) -> None:
    assert keymap(f'layer.page_up = "{written}"') == {"layer.page_up": name}


def test_every_printable_character_has_the_name_that_its_press_has() -> None:
    characters = [chr(code) for code in range(0x21, 0x7F)]
    pressed = [event for one in characters for event in XTermParser().feed(one)]
    assert [event.character for event in pressed if isinstance(event, Key)] == characters
    for event in pressed:
        assert isinstance(event, Key)
        written = "comma" if event.character == "," else event.character
        assert keymap_of({"x": written}, {"main": [Binding("f1", "x", id="x")]})["x"] == event.key


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('layer.nxt = "n"', "layer.nxt: no such id; did you mean layer.next"),
        ('nonsense = "n"', "nonsense: no such id; `moe-microscope keys` prints all"),
        ('layer = "n"', "layer: no such id"),
        ('layer.next.more = "n"', "layer.next is {'more': 'n'}: write a string"),
        ('layer.next = "n"\n"layer.next" = "m"', "layer.next: is defined twice"),
        ("layer.next = 3", "layer.next is 3: write a string"),
        ('layer.next = ["n"]', "layer.next is ['n']: write a string"),
        ('layer.next = " "', 'layer.next is empty: write at least one key, like "j"'),
        ('app.quit = ""', "app.quit would leave no key to quit"),
        ('layer.next = "n,"', "an empty key between commas"),
        ('layer.next = "ctrl+c"', "ctrl+c always quits; write another key"),
        ('app.quit = "Q,ctrl+q"', "ctrl+q always quits"),
        ('layer.next = "nn"', 'no terminal sends a key "nn"'),
        ('layer.next = "shift+n"', 'no terminal sends a key "shift+n"'),
        ('layer.next = "ctrl+i"', 'no terminal sends a key "ctrl+i"'),
        ('layer.next = "ctrl+@"', 'no terminal sends a key "ctrl+@"'),
        ('layer.next = "hyp+n"', 'no terminal sends a key "hyp+n"'),
        ('layer.next = "ctrl+"', 'no terminal sends a key "ctrl+"'),
        ('layer.next = "return"', 'no terminal sends a key "return"'),
        ('layer.next = "\\u001b"', 'no terminal sends a key "\N{REPLACEMENT CHARACTER}"'),
        ('"\\u001b[2J" = "n"', "\N{REPLACEMENT CHARACTER}[2J: no such id"),
    ],
)
def test_an_impossible_key_is_refused_with_what_to_write(text: str, words: str) -> None:
    assert words in refusal(text)


def test_a_key_with_two_meanings_is_refused_with_all_of_them() -> None:
    message = refusal('layer.next = "a"\ntime.back = "?"')
    for part in (
        "a: layer.next and alert.next on the main screen",
        "?: time.back and app.help on the main screen",
        "?: time.back and app.help on the layer screen",
    ):
        assert part in message
    assert "a: layer.next and alert.next on the layer screen" not in message


def test_two_bindings_may_change_places() -> None:
    mine = keymap('time.back = "]"\ntime.on = "["')
    assert mine == {"time.back": "right_square_bracket", "time.on": "left_square_bracket"}


def test_a_binding_without_an_id_keeps_its_key() -> None:
    screens = {"main": [Binding("x", "act", "does it"), Binding("j", "go", id="go")]}
    assert conflicts(screens, {"go": "x"}) == ["x: does it and go on the main screen"]


def test_only_the_keys_change_and_what_is_shown_of_them() -> None:
    mine = keymap('time.back = "b,left"\nlayer.page_up = "pageup,u"')
    before, after = SCREENS["main"], remapped(SCREENS["main"], mine)
    changed = {new.id: new for old, new in zip(before, after, strict=True) if new != old}
    assert list(changed) == ["layer.page_up", "time.back"]
    back, page_up = changed["time.back"], changed["layer.page_up"]
    assert (back.key, back.key_display) == ("b,left", "b ]")
    assert (page_up.key, page_up.key_display) == ("pageup,u", "page up")
    original = next(b for b in before if b.id == "time.back")
    assert replace(back, key=original.key, key_display=original.key_display) == original


@pytest.mark.parametrize(
    ("text", "pair", "layers"),
    [
        ('time.on = "n"', "[ n", "↑↓"),
        ('time.back = "b"\ntime.on = "n,right_square_bracket"', "b n", "↑↓"),
        ('layer.next = "pagedown"', "[ ]", "↑ page down"),
    ],
)
def test_a_display_for_two_bindings_shows_the_keys_of_both(
    text: str, pair: str, layers: str
) -> None:
    after = remapped(keys.MAIN, keymap(text))
    shown = {one.id: one.key_display for one in after if one.show}
    assert (shown["time.back"], shown["layer.previous"]) == (pair, layers)
    assert shown["layer.open"] == "⏎"
    assert shown["screen.runs"] == "r"


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
    names = [*(k.value for k in Keys), *map(chr, range(0x21, 0x7F)), "alt+J"]
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


@pytest.mark.parametrize("key", ["hyper+j", "super+f5", "ctrl+comma", "shift+enter", "ctrl+tab"])
def test_a_key_that_few_terminals_send_is_refused(key: str) -> None:
    assert f"most terminals, and tmux, do not send {key}" in refusal(f'layer.next = "{key}"')


def test_a_capital_with_alt_is_the_key_that_is_pressed() -> None:
    assert keymap('layer.next = "alt+J"') == {"layer.next": "alt+shift+j"}


def test_names_of_keys_are_shown_as_people_know_them() -> None:
    known = ["up", "escape", "left_square_bracket", "slash", "comma", "ctrl+p", "f5", "J", "space"]
    assert [shown_key(key) for key in known] == [
        "↑",
        "esc",
        "[",
        "/",
        ",",
        "ctrl+p",
        "f5",
        "J",
        "space",
    ]
    assert written_key("comma") == "comma"
    assert written_key("up") == "up"


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
        for one in Binding.make_bindings(remapped(bindings, mine)):
            owners.setdefault(one.key, set()).add(one.id)
        assert all(len(ids) == 1 for ids in owners.values())
