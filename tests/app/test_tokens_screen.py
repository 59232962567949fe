"""The text of a probe: keys, jumps and searches, against the file itself."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from microscope_tui.app import (
    HelpScreen,
    MainScreen,
    Microscope,
    TokensScreen,
)
from microscope_tui.routing import FILE_NAME, RoutingWriter, Shape
from microscope_tui.watch import Fleet
from tests.app.probe_session import copied, shown, typed
from tests.app.sitting import Seen, Until, read
from tests.probed import write_probed


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_probed(tmp_path_factory.mktemp("logs") / "probe")


async def test_key_7_shows_the_text_with_the_choice_at_the_cursor(
    probed: Path, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(probed)).run_test(size=(120, 40)) as pilot:
        _, _, routing = await shown(pilot, until, TokensScreen, "7")
        text = seen(pilot, "#token-text")
        assert "── code ──" in text
        assert "import re" in text
        choice = routing.choice(0, 0)
        panel = seen(pilot, "#token-panel")
        assert [int(line.split()[0]) for line in panel.split("\n")[4:6]] == list(choice.experts)
        assert f"{choice.entropy:.2f}" in panel
        assert "L6" in panel
        assert f"expert {choice.experts[0]} " in seen(pilot, "#token-title")


async def test_the_main_screen_names_the_keys_of_the_probe_where_there_is_one(
    probed: Path, tmp_path: Path, until: Until, seen: Seen
) -> None:
    bare = copied(probed, tmp_path)
    (bare / FILE_NAME).unlink()
    for run, named in ((probed, True), (bare, False)):
        async with Microscope(Fleet(run)).run_test(size=(80, 24)) as pilot:
            app = await read(pilot, until)
            await app.screen.redraw()
            await pilot.pause()
            assert seen(pilot, "#keys").startswith(" 7 tokens  8 slices") == named


async def test_arrows_move_through_layers_and_tokens_and_stop_at_the_ends(
    probed: Path, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(probed)).run_test(size=(80, 24)) as pilot:
        app, anatomy, routing = await shown(pilot, until, TokensScreen, "7")
        places = []
        for key in ("left", "right", "l", "down", "j", "up", "k", "k", "h", "end", "right", "g"):
            await pilot.press(key)
            places.append((anatomy.layer, anatomy.token))
            name, number = routing.shape.layer_names[anatomy.layer], anatomy.token
            assert f"  {name} " in seen(pilot, "#token-title")
            assert f"token {number:,} of" in seen(pilot, "#token-title")
        last = routing.tokens - 1
        assert places == [
            *((0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (1, 2), (0, 2), (0, 2)),
            *((0, 1), (0, last), (0, last), (0, 0)),
        ]
        await pilot.press("down", "down")
        assert app.session.selected == 2  # the other screens show this layer too


async def test_lines_and_pages_move_the_cursor_and_bring_it_into_view(
    probed: Path, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(probed)).run_test(size=(80, 24)) as pilot:
        _, anatomy, _ = await shown(pilot, until, TokensScreen, "7")
        at = [anatomy.token]
        for key in ("J", "J", "pagedown", "pagedown"):
            await pilot.press(key)
            at.append(anatomy.token)
        assert at == sorted(set(at))
        for key in ("pageup", "pageup", "K", "K", "K"):
            await pilot.press(key)
        assert anatomy.token < at[1]


async def test_e_goes_from_token_to_token_of_the_expert_at_the_cursor(
    probed: Path, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(probed)).run_test(size=(120, 40)) as pilot:
        app, anatomy, routing = await shown(pilot, until, TokensScreen, "7")
        await typed(pilot, "colon", "1200")
        expert = routing.choice(0, 1200).experts[0]
        holds = [n for n in range(routing.tokens) if expert in routing.choice(0, n).experts]
        after = [n for n in holds if n > 1200][:4]
        places = []
        for _ in range(4):
            await pilot.press("e")
            await pilot.pause()
            places.append(anatomy.token)
        assert places == after
        assert app.session.expert == expert
        assert f"only expert  {expert} " in seen(pilot, "#token-legend")
        await pilot.press("E")
        await pilot.pause()
        assert anatomy.token == after[2]
        await typed(pilot, "colon", str(holds[-1]))
        await pilot.press("e")
        await until(pilot, lambda: "no later token chose" in seen(pilot, "#keys"), "the end")
        assert anatomy.token == holds[-1]


async def test_an_expert_is_chosen_by_number_and_enter_lights_all_again(
    probed: Path, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(probed)).run_test(size=(120, 40)) as pilot:
        app, anatomy, routing = await shown(pilot, until, TokensScreen, "7")
        await typed(pilot, "colon", "e5")
        assert anatomy.token == routing.next_of(0, 5, 0)
        assert "only expert  5 " in seen(pilot, "#token-legend")
        await pilot.press("enter")
        assert "busiest" in seen(pilot, "#token-legend")
        await pilot.press("enter")
        here = routing.choice(0, anatomy.token).experts[0]
        assert app.session.expert == here
        await typed(pilot, "colon", "e99")
        assert "no expert 99: there are 0 to 15" in seen(pilot, "#keys")


async def test_jumps_by_number_share_and_distance(probed: Path, until: Until, seen: Seen) -> None:
    async with Microscope(Fleet(probed)).run_test(size=(80, 24)) as pilot:
        _, anatomy, routing = await shown(pilot, until, TokensScreen, "7")
        for text, token in (
            ("1,000", 1000),
            ("+10", 1010),
            ("-20", 990),
            ("50%", round((routing.tokens - 1) / 2)),
            ("end", routing.tokens - 1),
            ("0", 0),
        ):
            await typed(pilot, "colon", text)
            assert anatomy.token == token, text
        await typed(pilot, "colon", "999999")
        assert f"there are 0 to {routing.tokens - 1:,}" in seen(pilot, "#keys")
        assert anatomy.token == 0


async def test_a_text_is_found_forwards_backwards_and_around(
    probed: Path, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(probed)).run_test(size=(80, 24)) as pilot:
        _, anatomy, routing = await shown(pilot, until, TokensScreen, "7")
        tokens = routing.text(0, routing.tokens)
        holds = [n for n, text in enumerate(tokens) if b"Rossum" in text]
        await typed(pilot, "slash", "Rossum")
        found = [anatomy.token]
        for _ in holds:
            await pilot.press("n")
            await pilot.pause()
            found.append(anatomy.token)
        assert found == [*holds, holds[0]]
        assert "from the start again" in seen(pilot, "#keys")
        await pilot.press("N")
        await pilot.pause()
        assert anatomy.token == holds[-1]
        await typed(pilot, "slash", "wolf\\")
        assert "is not in the text" in seen(pilot, "#keys")


async def test_letters_are_shown_on_demand(probed: Path, until: Until, seen: Seen) -> None:
    async with Microscope(Fleet(probed)).run_test(size=(120, 40)) as pilot:
        app, _, _ = await shown(pilot, until, TokensScreen, "7")
        before = seen(pilot, "#token-text").split("\n")
        await pilot.press("v")
        await pilot.pause()
        after = seen(pilot, "#token-text").split("\n")
        assert after[1].rstrip() == before[1].rstrip()
        assert set("".join(after[2].split())) <= {".", *"abcdefg"}
        assert " a " in seen(pilot, "#token-legend")
        assert isinstance(app.screen, TokensScreen)


async def test_a_run_without_a_probe_says_how_to_make_one(
    collapsed: Path, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(collapsed)).run_test(size=(80, 24)) as pilot:
        app = await read(pilot, until)
        await pilot.press("7")
        await until(pilot, lambda: isinstance(app.screen, TokensScreen), "the screen")
        await pilot.pause()
        assert "moe-microscope probe MODEL TEXT" in seen(pilot, "#token-text")
        for key in ("e", "E", "enter", "n", "J", "pagedown", "down", "right", "G", "v"):
            await pilot.press(key)
        await typed(pilot, "colon", "12")
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, MainScreen), "back")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[:5000], "cut off or damaged"),
        (lambda data: b"x" * 200, "is not a routing file"),
        (lambda data: b"", "shorter than the preamble"),
    ],
)
async def test_a_damaged_probe_is_reported_and_the_run_stays(
    probed: Path,
    tmp_path: Path,
    until: Until,
    seen: Seen,
    damage: Callable[[bytes], bytes],
    said: str,
) -> None:
    run = copied(probed, tmp_path)
    (run / FILE_NAME).write_bytes(damage((run / FILE_NAME).read_bytes()))
    async with Microscope(Fleet(run)).run_test(size=(200, 30)) as pilot:
        app = await read(pilot, until)
        for key in ("7", "8"):
            await pilot.press(key)
            await pilot.pause(0.2)
            rows = "#token-text" if key == "7" else "#slice-rows"
            assert said in seen(pilot, rows)
        assert app.session.has_run


async def test_hostile_tokens_never_reach_the_terminal(
    probed: Path, tmp_path: Path, until: Until, seen: Seen
) -> None:
    run = copied(probed, tmp_path)
    evil = [
        "\x1b[2J",
        "\x1b]52;c;aGFja2Vk\x07",
        "\u202eabc",
        "e" + "\u0301" * 50,
        "[red]x[/]",
        "漢字",
    ]
    texts = [text.encode() for text in evil] + [b"\xe2\x82", b"\xac\xff\xfe", b"\n\r\t\x00", b""]
    names = ("L1\x1b[2J", "\u202eL2")
    writer = RoutingWriter(
        run / FILE_NAME,
        Shape((1, 2), names, 16, 2, len(texts)),
        slices=["\x1b]0;x\x07[b]"],
        model="\x1b[31m[@click=app.quit]x[/]",
    )
    count = len(texts)
    writer.put_tokens(range(count), texts, [0] * 9 + [4000], [0] * count)
    writer.put("ids", 0, 0, bytes([255, 255] * count))
    writer.finish()
    async with Microscope(Fleet(run)).run_test(size=(100, 30)) as pilot:
        _, anatomy, _ = await shown(pilot, until, TokensScreen, "7")
        for _ in range(count):
            everything = "".join(
                seen(pilot, part)
                for part in ("#token-text", "#token-panel", "#token-title", "#token-legend")
            )
            assert not set(everything) & set("\x1b\x07\u202e\x00\t\r")
            await pilot.press("right")
        assert anatomy.token == count - 1
        assert "漢字" in seen(pilot, "#token-text")
        assert "[red]x[/]" in seen(pilot, "#token-text")
        await typed(pilot, "slash", "[red]")
        assert anatomy.token == 4


async def test_any_size_of_the_window(probed: Path, until: Until, seen: Seen) -> None:
    async with Microscope(Fleet(probed)).run_test(size=(120, 40)) as pilot:
        app, anatomy, _ = await shown(pilot, until, TokensScreen, "7")
        await typed(pilot, "colon", "1200")
        for size in ((60, 20), (71, 10), (72, 10), (300, 80), (20, 5), (80, 24)):
            await pilot.resize_terminal(*size)
            await pilot.pause(0.1)
        assert isinstance(app.screen, TokensScreen)
        assert anatomy.token == 1200
        lines = seen(pilot, "#token-text").split("\n")
        assert max(len(line.rstrip()) for line in lines) <= 80 - 26


async def test_the_tokens_in_view_are_written_as_data(
    probed: Path, until: Until, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with Microscope(Fleet(probed)).run_test(size=(80, 24)) as pilot:
        app, _, routing = await shown(pilot, until, TokensScreen, "7")
        await typed(pilot, "colon", "7")
        await pilot.press("W")
        await until(pilot, lambda: app.session.written, "the file")
        found = json.loads(app.session.written[0].read_text())
        assert found["tokens"][0]["token"] == 7
        assert tuple(found["tokens"][0]["experts"]) == routing.choice(0, 7).experts
        await pilot.press("question_mark")
        assert isinstance(app.screen, HelpScreen)


@pytest.mark.parametrize(("key", "said"), [("7", "colour of the expert"), ("8", "is an expert")])
async def test_help_explains_the_screen_that_it_was_opened_from(
    probed: Path, until: Until, seen: Seen, key: str, said: str
) -> None:
    async with Microscope(Fleet(probed)).run_test(size=(120, 60)) as pilot:
        app = await read(pilot, until)
        await pilot.press(key)
        await pilot.pause(0.2)
        await pilot.press("question_mark", "w")
        await until(pilot, lambda: isinstance(app.screen, HelpScreen), "help")
        await pilot.pause()
        assert said in seen(pilot, "#help")
        assert "probe" in seen(pilot, "#help")
