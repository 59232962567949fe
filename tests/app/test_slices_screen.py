"""The slices of a probe: the cursor, the orders, the layers, and the way to the tokens."""

from pathlib import Path

from microscope_tui.app import Rows, TokensScreen
from microscope_tui.routing import FILE_NAME, Routing, RoutingWriter, Shape, Tables
from tests.app.pilot import AppPilot, open_app


def experts(app: AppPilot) -> list[int]:
    """The experts of the rows, from above."""
    rows = [line.replace("▶", " ").split() for line in app.text("slice-rows").split("\n")]
    return [int(row[0]) for row in rows if row]


async def test_every_expert_is_shown_with_slices_and_tokens(probed: Path) -> None:
    async with open_app(probed, "8", size=(120, 40)) as app:
        routing = app.session.anatomy.routing
        assert routing is not None
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


async def test_the_cursor_stays_on_its_expert_in_every_order_and_layer(probed: Path) -> None:
    async with open_app(probed, "8", size=(120, 40)) as app:
        anatomy, order = app.session.anatomy, experts(app)
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
        assert anatomy.routing is not None
        assert anatomy.token == anatomy.routing.next_of(1, expert, 0)
        assert f"only expert  {expert} " in app.text("token-legend")
        assert "  L2 " in app.text("token-title")


async def test_an_interrupted_probe_has_tokens_and_no_tables(own_probed: Path) -> None:
    with Routing(own_probed / FILE_NAME) as whole:
        texts, shape = whole.text(0, 50), whole.shape
        ids = [whole.ids_of(layer, 0, 50) for layer in range(6)]
    writer = RoutingWriter(
        own_probed / FILE_NAME, Shape(shape.layers, shape.layer_names, 16, 2, 99), slices=["code"]
    )
    writer.put_tokens(range(50), texts, [0] * 50, [0] * 50)
    for layer, numbers in enumerate(ids):
        writer.put("ids", layer, 0, numbers)
    writer.finish(Tables())
    async with open_app(own_probed, "8", size=(80, 24)) as app:
        assert "no tables: it was interrupted" in app.text("slice-rows")
        await app.press("down", "enter", "s", "right", "tab", "7")
        await app.opens(TokensScreen)
        assert "busiest" in app.text("token-legend")
