"""The screens of a probe: its text, and what its experts prefer, against the file itself."""

from pathlib import Path

import msgspec
import pytest

from microscope_tui.extensions.anatomy.layout import Shape, Tables
from microscope_tui.extensions.anatomy.opened import anatomy_of
from microscope_tui.extensions.anatomy.routing_file import Routing, RoutingWriter
from microscope_tui.extensions.anatomy.screens import TokensScreen
from microscope_tui.kit.rows import Rows
from microscope_tui.runlog import ROUTING_NAME
from microscope_tui.screens.main.screen import MainScreen
from tests.app.pilot import AppPilot, open_app
from tests.conftest import Call, header, step

TOKEN_PARTS = ("token-text", "token-panel", "token-title", "token-legend")


def routing_of(app: AppPilot) -> Routing:
    anatomy = anatomy_of(app.session)
    assert anatomy.routing is not None, anatomy.problem
    return anatomy.routing


async def test_the_text_is_shown_with_the_choice_at_the_cursor(probed: Path) -> None:
    async with open_app(probed, "7", size=(120, 40)) as app:
        assert "── code ──" in app.text("token-text")
        assert "import re" in app.text("token-text")
        choice = routing_of(app).choice(0, 0)
        panel = app.text("token-panel")
        assert [int(line.split()[0]) for line in panel.split("\n")[4:6]] == list(choice.experts)
        assert f"{choice.entropy:.2f}" in panel
        assert "L6" in panel
        assert f"expert {choice.experts[0]} " in app.text("token-title")
        before = app.text("token-text").split("\n")
        await app.press("v")  # letters below the text
        after = app.text("token-text").split("\n")
        assert after[1].rstrip() == before[1].rstrip()
        assert set("".join(after[2].split())) <= {".", *"abcdefg"}
        first = choice.experts[0]
        assert f" {'abcdefg'[first % 7]} {first} " in app.text("token-legend")
        await app.press("?", "w")
        assert "colour of the expert" in app.text("help")
        await app.press("escape", "8", "?", "w")
        assert "is an expert" in app.text("help")


async def test_the_last_line_names_the_keys_of_a_probe(probed: Path, collapsed: Path) -> None:
    for run, named in ((probed, True), (collapsed, False)):
        async with open_app(run, size=(80, 24)) as app:
            assert app.text("keys").startswith(" 7 tokens  8 slices") == named


async def test_arrows_move_through_layers_and_tokens_and_stop_at_the_ends(probed: Path) -> None:
    async with open_app(probed, "7", size=(80, 24)) as app:
        anatomy, routing, places = anatomy_of(app.session), routing_of(app), []
        for key in ("left", "right", "l", "down", "j", "up", "k", "k", "h", "end", "right", "g"):
            await app.press(key)
            places.append((anatomy.layer, anatomy.token))
            assert f"  {routing.shape.layer_names[anatomy.layer]} " in app.text("token-title")
            assert f"token {anatomy.token:,} of" in app.text("token-title")
        last = routing.tokens - 1
        assert places == [
            *((0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (1, 2), (0, 2), (0, 2)),
            *((0, 1), (0, last), (0, last), (0, 0)),
        ]
        await app.press("down", "down")
        assert app.session.selected == 2  # the other screens show this layer too
        at = [anatomy.token]
        for key in ("J", "J", "pagedown", "pagedown"):
            await app.press(key)
            at.append(anatomy.token)
        assert at == sorted(set(at))
        await app.press("pageup", "pageup", "K", "K", "K")
        assert anatomy.token < at[1]


async def test_e_moves_from_token_to_token_of_the_expert_at_the_cursor(probed: Path) -> None:
    async with open_app(probed, "7", *":1200", "enter", size=(120, 40)) as app:
        anatomy, routing, places = anatomy_of(app.session), routing_of(app), []
        expert = routing.choice(0, 1200).experts[0]
        holds = [n for n in range(routing.tokens) if expert in routing.choice(0, n).experts]
        after = [n for n in holds if n > 1200][:4]
        for _ in range(4):
            await app.press("e")
            places.append(anatomy.token)
        assert places == after
        assert app.session.expert == expert
        assert f"only expert  {expert} " in app.text("token-legend")
        await app.press("E")
        assert anatomy.token == after[2]
        await app.enter(f":{holds[-1]}")
        await app.press("e")
        assert "no later token chose" in app.text("keys")
        assert anatomy.token == holds[-1]
        await app.enter(":0")
        await app.enter(":e5")
        assert anatomy.token == routing.next_of(0, 5, 0)
        assert "only expert  5 " in app.text("token-legend")
        await app.press("enter")
        assert "busiest" in app.text("token-legend")
        await app.press("enter")
        assert app.session.expert == routing.choice(0, anatomy.token).experts[0]
        await app.enter(":e99")
        assert "no expert 99: there are 0 to 15" in app.text("keys")


async def test_places_are_typed_and_texts_found_forwards_backwards_and_around(probed: Path) -> None:
    async with open_app(probed, "7", size=(80, 24)) as app:
        anatomy, routing = anatomy_of(app.session), routing_of(app)
        for typed, token in {":1,000": 1000, ":+10": 1010, ":-20": 990, ":0": 0}.items():
            await app.enter(typed)
            assert anatomy.token == token, typed
        await app.enter(":999999")
        assert f"there are 0 to {routing.tokens - 1:,}" in app.text("keys")
        assert anatomy.token == 0
        await app.press("n")
        assert "no search text" in app.text("keys")
        texts = routing.text(0, routing.tokens)
        holds = [n for n, text in enumerate(texts) if b"Rossum" in text]
        await app.enter("/Rossum")
        found = [anatomy.token]
        for _ in holds:
            await app.press("n")
            found.append(anatomy.token)
        assert found == [*holds, holds[0]]
        assert "from the start again" in app.text("keys")
        await app.press("N")
        assert anatomy.token == holds[-1]
        assert "from the end again" in app.text("keys")
        await app.enter("/wolf\\")
        assert "is not in the text" in app.text("keys")


async def test_a_run_without_a_probe_shows_how_to_make_one(collapsed: Path) -> None:
    async with open_app(collapsed, "7", size=(80, 24)) as app:
        assert "moe-microscope probe MODEL TEXT" in app.text("token-text")
        await app.press("e", "E", "enter", "n", "J", "pagedown", "down", "right", "G", "v")
        await app.enter(":12")
        await app.press("escape")
        assert isinstance(app.screen, MainScreen)


async def test_a_damaged_probe_is_reported_and_the_run_stays(own_probed: Path) -> None:
    file = own_probed / ROUTING_NAME
    file.write_bytes(file.read_bytes()[:5000])
    async with open_app(own_probed, "7", size=(200, 30)) as app:
        assert "cut off or damaged" in app.text("token-text")
        await app.press("8")
        assert "cut off or damaged" in app.text("slice-rows")
        assert app.session.has_run


async def test_hostile_tokens_never_reach_the_terminal(own_probed: Path) -> None:
    evil = ["\x1b[2J", "\x1b]52;c;aGFja2Vk\x07", "\u202eabc", "e" + "\u0301" * 50]
    evil += ["[red]x[/]", "漢字"]
    texts = [text.encode() for text in evil] + [b"\xe2\x82", b"\xac\xff\xfe", b"\n\r\t\x00", b""]
    count = len(texts)
    writer = RoutingWriter(
        own_probed / ROUTING_NAME,
        Shape((1, 2), ("L1\x1b[2J", "\u202eL2"), 16, 2, count),
        slices=["\x1b]0;x\x07[b]"],
        model="\x1b[31m[@click=app.quit]x[/]",
    )
    writer.put_tokens(range(count), texts, [0] * 9 + [4000], [0] * count)
    writer.put("ids", 0, 0, bytes([255, 255] * count))
    writer.finish()
    async with open_app(own_probed, "7") as app:
        for _ in range(count):
            assert not set(app.text(*TOKEN_PARTS)) & set("\x1b\x07\u202e\x00\t\r")
            await app.press("right")
        assert anatomy_of(app.session).token == count - 1
        assert "漢字" in app.text("token-text")
        assert "[red]x[/]" in app.text("token-text")
        await app.enter("/[red]")
        assert anatomy_of(app.session).token == 4


async def test_the_cursor_stays_in_view(probed: Path) -> None:
    async with open_app(probed, "7", *":1200", "enter") as app:
        for size in ((60, 20), (71, 10), (72, 10), (20, 5), (80, 24)):
            await app.resize(*size)
        assert anatomy_of(app.session).token == 1200
        assert max(len(line.rstrip()) for line in app.text("token-text").split("\n")) <= 80 - 26


def experts(app: AppPilot) -> list[int]:
    rows = [line.replace("▶", " ").split() for line in app.text("slice-rows").split("\n")]
    return [int(row[0]) for row in rows if row]


async def test_every_expert_is_shown_with_slices_and_tokens(probed: Path) -> None:
    async with open_app(probed, "8", size=(120, 40)) as app:
        routing = routing_of(app)
        assert sorted(experts(app)) == list(range(16))
        first = experts(app)[0]
        _, count, lift = routing.tables.lifts[0][first][0]
        assert f" {count}" in app.text("slice-rows").split("\n")[0]
        assert f"{count}× lift {lift:.3g}" in app.text("slice-detail")
        assert "of 16 experts prefer or avoid a slice" in app.text("slice-top")
        assert "token identity explains" in app.text("slice-top")
        await app.resize(80, 40)  # few experts leave their rows to the detail
        rows, detail, keys = (
            app.screen.query_one(f"#{part}", Rows)
            for part in ("slice-rows", "slice-detail", "keys")
        )
        assert rows.region.height == 16
        assert detail.region.y == rows.region.bottom + 1
        assert all(f"{name} " in " ".join(detail.texts) for name in routing.slices)
        assert keys.region.bottom == 40
        await app.press("end")
        for columns, lines in ((60, 10), (20, 5), (80, 20)):
            await app.resize(columns, lines)
        assert keys.region.bottom == 20
        assert rows.region.height < 16
        assert "▶" in app.text("slice-rows")


TAKES = [[200, 200, 0, 0, 0, 0, 0, 0], [0, 0, 200, 200, 0, 0, 0, 0]]


def evaluated(folder: Path, **slices: object) -> Path:
    """A run of ``train.py`` that was evaluated after step 3."""
    lines = [header(), *(step(n, [[8] * 8] * 3, 32) for n in range(1, 4))]
    found = {"names": ["code", "\x1b[2Jprose"], "noise": [0.1, 0.1]}
    found["counts"] = [[row] * 3 for row in TAKES]
    event = {"kind": "event", "step": 3, "event": "eval", "values": {"loss": 2.0}}
    lines.append(event | {"slices": found | slices})
    (folder / "metrics.jsonl").write_bytes(b"\n".join(map(msgspec.json.encode, lines)) + b"\n")
    return folder


async def test_a_run_shows_which_experts_take_which_held_out_text(tmp_path: Path) -> None:
    async with open_app(evaluated(tmp_path), "8", size=(120, 40)) as app:
        said = "held-out text at step 3: experts 0, 1 take code; experts 2, 3 take �[2Jprose"
        assert said in app.text("slice-top")
        assert "tokens" not in app.text("slice-heads") + app.text("slice-detail")
        await app.press("right", "right", "right")
        assert app.text("slice-top").startswith("  L3 3 of 3 ")
        assert app.session.selected == 2
        await app.press("enter")
        assert "its tokens are in a probe" in app.text("keys")


async def test_what_a_run_repeats_has_no_held_out_counts_yet(tmp_path: Path) -> None:
    again = msgspec.json.encode(header(resumed_at_step=3)) + b"\n"
    with (evaluated(tmp_path) / "metrics.jsonl").open("ab") as log:
        log.write(again + msgspec.json.encode(step(3, [[8] * 8] * 3, 32)) + b"\n")
    async with open_app(tmp_path, "8", size=(120, 40)) as app:
        assert "held-out text" not in app.text("slice-top")


def test_a_snapshot_of_held_out_slices_needs_no_probe(tmp_path: Path, call: Call) -> None:
    code, out, _ = call("snapshot", evaluated(tmp_path), "--screen", "slices")
    assert code == 0
    assert "held-out text at step 3: experts 0, 1 take code" in out


@pytest.mark.parametrize("counts", [[], [[]], 3, [[[-1]] * 3] * 2, [[[1] * 9] * 3] * 2])
async def test_counts_that_do_not_fit_the_run_are_not_shown(tmp_path: Path, counts: object) -> None:
    async with open_app(evaluated(tmp_path, counts=counts), "8", size=(120, 40)) as app:
        assert "held-out text" not in app.text("slice-top")
        assert "step 3" in app.text("header")


async def test_the_cursor_stays_on_its_expert_in_every_order_and_layer(probed: Path) -> None:
    async with open_app(probed, "8", size=(120, 40)) as app:
        anatomy, order = anatomy_of(app.session), experts(app)
        await app.press("down", "j", "up")
        assert app.session.expert == order[1]
        await app.press("s")
        assert "by slice" in app.text("slice-heads")
        await app.press("s")
        assert experts(app) == list(range(16))
        assert app.session.expert == order[1]
        assert f"expert {order[1]} " in app.text("slice-detail")
        await app.press("right", "l", "left")
        assert anatomy.layer == 1
        assert "  L2 2 of 6" in app.text("slice-top")
        assert app.session.expert == order[1]
        await app.press("end")
        assert app.session.expert == 15
        await app.press("home", "pagedown", "pageup", "tab", "shift+tab")
        assert app.session.expert == 0
        await app.press("down", "enter")
        await app.opens(TokensScreen)
        expert = app.session.expert
        assert expert == 1
        assert anatomy.token == routing_of(app).next_of(1, expert, 0)
        assert f"only expert  {expert} " in app.text("token-legend")
        assert "  L2 " in app.text("token-title")


async def test_an_interrupted_probe_has_tokens_and_no_tables(own_probed: Path) -> None:
    with Routing(own_probed / ROUTING_NAME) as whole:
        texts, shape = whole.text(0, 50), whole.shape
        ids = [whole.raw("ids", layer, 0, 50) for layer in range(6)]
    writer = RoutingWriter(
        own_probed / ROUTING_NAME,
        Shape(shape.layers, shape.layer_names, 16, 2, 99),
        slices=["code"],
    )
    writer.put_tokens(range(50), texts, [0] * 50, [0] * 50)
    for layer, numbers in enumerate(ids):
        writer.put("ids", layer, 0, numbers)
    writer.finish(Tables())
    async with open_app(own_probed, "8", size=(80, 24)) as app:
        assert "no tables: it was interrupted" in app.text("slice-rows")
        await app.press("down", "enter", "s", "right", "tab", "7")
        await app.opens(TokensScreen)
        assert app.text("token-legend").rstrip().endswith("others")
