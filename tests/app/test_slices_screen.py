"""The slices of a probe: the cursor, the orders, the layers, and the way to the tokens."""

from pathlib import Path

import pytest

from microscope_tui.app import Microscope, Rows, SlicesScreen, TokensScreen
from microscope_tui.routing import FILE_NAME, Routing, RoutingWriter, Shape, Tables
from microscope_tui.watch import Fleet
from tests.app.probe_session import copied, shown
from tests.app.sitting import Seen, Until
from tests.probed import write_probed


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_probed(tmp_path_factory.mktemp("logs") / "probe")


def experts(text: str) -> list[int]:
    """The experts of the rows, from above."""
    rows = [line.replace("▶", " ").split() for line in text.split("\n")]
    return [int(row[0]) for row in rows if row]


async def test_key_8_shows_the_experts_with_slices_and_tokens(
    probed: Path, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(probed)).run_test(size=(120, 40)) as pilot:
        _, _, routing = await shown(pilot, until, SlicesScreen, "8")
        rows = seen(pilot, "#slice-rows")
        assert sorted(experts(rows)) == list(range(16))
        first = experts(rows)[0]
        token_id, count, lift = routing.tables.lifts[0][first][0]
        assert f" {count}" in rows.split("\n")[0]
        assert f"{count}× lift {lift:.3g}" in seen(pilot, "#slice-detail")
        assert routing.text_of_id(token_id) is not None
        top = seen(pilot, "#slice-top")
        assert "of 16 experts prefer or avoid a slice" in top
        assert "token identity explains" in top


async def test_few_experts_leave_their_rows_to_the_detail(probed: Path, until: Until) -> None:
    async with Microscope(Fleet(probed)).run_test(size=(80, 40)) as pilot:
        app, _, routing = await shown(pilot, until, SlicesScreen, "8")
        rows, detail = (app.screen.query_one(f"#slice-{name}", Rows) for name in ("rows", "detail"))
        assert rows.region.height == 16
        assert detail.region.y == rows.region.bottom + 1
        text = " ".join(detail.texts)
        assert all(f"{name} " in text for name in routing.slices)
        assert app.screen.query_one("#keys", Rows).region.bottom == 40
        await pilot.resize_terminal(80, 20)
        await until(pilot, lambda: app.screen.query_one("#keys", Rows).region.bottom == 20, "20")
        await pilot.pause()
        assert rows.region.height < 16


async def test_the_cursor_moves_among_experts_and_layers_and_stays_on_its_expert(
    probed: Path, until: Until, seen: Seen
) -> None:
    async with Microscope(Fleet(probed)).run_test(size=(120, 40)) as pilot:
        app, anatomy, _ = await shown(pilot, until, SlicesScreen, "8")
        order = experts(seen(pilot, "#slice-rows"))
        await pilot.press("down", "j", "up")
        assert app.session.expert == order[1]
        await pilot.press("s")
        assert "by slice" in seen(pilot, "#slice-heads")
        await pilot.press("s")
        assert experts(seen(pilot, "#slice-rows")) == list(range(16))
        assert app.session.expert == order[1]
        assert f"expert {order[1]} " in seen(pilot, "#slice-detail")
        await pilot.press("right", "l", "left")
        assert anatomy.layer == 1
        assert "  L2 2 of 6" in seen(pilot, "#slice-top")
        assert app.session.expert == order[1]
        await pilot.press("end")
        assert app.session.expert == 15
        await pilot.press("home", "pagedown", "pageup", "tab", "shift+tab")
        assert app.session.expert == 0


async def test_enter_shows_the_tokens_of_the_expert(probed: Path, until: Until, seen: Seen) -> None:
    async with Microscope(Fleet(probed)).run_test(size=(120, 40)) as pilot:
        app, anatomy, routing = await shown(pilot, until, SlicesScreen, "8")
        await pilot.press("right", "down", "enter")
        await until(pilot, lambda: isinstance(app.screen, TokensScreen), "the tokens")
        await pilot.pause()
        expert = app.session.expert
        assert expert is not None
        assert anatomy.token == routing.next_of(1, expert, 0)
        assert f"only expert  {expert} " in seen(pilot, "#token-legend")
        assert "  L2 " in seen(pilot, "#token-title")


async def test_an_interrupted_probe_has_tokens_and_says_that_it_has_no_tables(
    probed: Path, tmp_path: Path, until: Until, seen: Seen
) -> None:
    run = copied(probed, tmp_path)
    with Routing(probed / FILE_NAME) as whole:
        texts, shape = whole.text(0, 50), whole.shape
        ids = [whole.ids_of(layer, 0, 50) for layer in range(6)]
    writer = RoutingWriter(
        run / FILE_NAME, Shape(shape.layers, shape.layer_names, 16, 2, 99), slices=["code"]
    )
    writer.put_tokens(range(50), texts, [0] * 50, [0] * 50)
    for layer, numbers in enumerate(ids):
        writer.put("ids", layer, 0, numbers)
    writer.finish(Tables())
    async with Microscope(Fleet(run)).run_test(size=(80, 24)) as pilot:
        app, _, _ = await shown(pilot, until, SlicesScreen, "8")
        assert "no tables: it was interrupted" in seen(pilot, "#slice-rows")
        for key in ("down", "enter", "s", "right", "tab"):
            await pilot.press(key)
        await pilot.press("7")
        await until(pilot, lambda: isinstance(app.screen, TokensScreen), "the tokens")
        await pilot.pause()
        assert "busiest" in seen(pilot, "#token-legend")


async def test_any_size_of_the_window(probed: Path, until: Until, seen: Seen) -> None:
    async with Microscope(Fleet(probed)).run_test(size=(120, 40)) as pilot:
        app, _, _ = await shown(pilot, until, SlicesScreen, "8")
        await pilot.press("end")
        for size in ((60, 20), (60, 10), (300, 80), (20, 5), (80, 24)):
            await pilot.resize_terminal(*size)
            await pilot.pause(0.1)
        assert isinstance(app.screen, SlicesScreen)
        rows = seen(pilot, "#slice-rows").split("\n")
        assert any(line.startswith("▶") for line in rows)
