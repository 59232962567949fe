"""The screens of a probe: its text, token by token, and which slice each expert reads.

The layers are those of the file; they need not be those of the run.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import time
from functools import lru_cache
from typing import ClassVar

from microscope_tui.draw.heat import after
from microscope_tui.draw.spans import Span, pad
from microscope_tui.extensions.anatomy import slices_text as slices, tokens_text as tokens
from microscope_tui.extensions.anatomy.layout import BadRouting, Shape, Tables
from microscope_tui.extensions.anatomy.opened import Anatomy, anatomy_of
from microscope_tui.extensions.anatomy.routing_file import Routing
from microscope_tui.extensions.anatomy.token_flow import Flow, Place
from microscope_tui.kit import keys
from microscope_tui.kit.base import AIRY_FROM_ROWS, BaseScreen
from microscope_tui.kit.glossary import ENTROPY, HEADER, LAYER, MARGIN, SHARE
from microscope_tui.kit.keys import key, pair
from microscope_tui.kit.prompts import Prompt
from microscope_tui.kit.rows import Rows
from microscope_tui.kit.time_cursor import MOST_CHARACTERS, BadPlace, parse_place
from microscope_tui.runlog import safe_text
from microscope_tui.watch import RunView

_BESIDE_FROM, _WIDE_FROM = 72, 110
_PANEL, _WIDE_PANEL = 26, 38
_MARGIN, _GAP = 2, 3
_MOST_BELOW = 9  # lines of the panel below the text of a narrow window
_SLICE_FRAME = 4  # header, two heads, keys


_PROBE = {
    "probe": "a finished model on a text: `moe-microscope probe` writes down every choice",
    "token, id": "a piece of the text as the model reads it; its number in the vocabulary",
    "slice, window": "a named part of the text; the stretch that the model saw at once",
    "expert": "chosen by the router for a token; a token goes to the k best",
    "this token, others": "its experts have colours, here and in the text; all others are grey",
    "busiest": "the experts with the largest shares of all choices in this layer",
}
_TOKENS = {
    "weight": "how much the output of a chosen expert counts",
    **MARGIN,
    "only expert": "tokens of one expert are highlighted, brightest where it has the largest "
    "weight",
    "a b c, ^ '": "below the text: the expert by its letter; ^ largest weight, ' also chosen",
    "↵ → · �": "newline, tab, a token without a character of its own, bytes that are not text",
}
_SLICES = {
    "-1.0, +2.0": "log2 of the share in the slice ÷ the share overall: half, four times as much",
    "chance, ·": "what shuffled slices reach too, in 99 of 100; a dot is no more than that",
    "few": "fewer than 10 choices are expected in this slice: the ratio may be chance",
    "none": "the expert was never chosen in this slice",
    "prefer, avoid": "a share in some slice that differs from its share overall beyond chance",
    "most telling": "tokens that go to the expert far more often than tokens overall",
    "lift": "how many times as often as overall the token goes to this expert",
    "token identity": "share of the routing that is explained by which token it is, 0 to 1",
    "shuffled": "the same with the tokens in random order: what chance explains",
}


class ProbeScreen(BaseScreen):
    MAIN_PART = ""

    @property
    def anatomy(self) -> Anatomy:
        """The probe of the open run, and the cursor in it."""
        return anatomy_of(self.session)

    async def draw(self, view: RunView, columns: int, rows: int) -> None:
        session = self.session
        anatomy = self.anatomy
        routing = await anatomy.open(session.watch.path) if session.watch else None
        if routing is not None:  # take over the layer and the expert that another screen chose
            if session.selected < len(view.layers):
                name = view.layers[session.selected].router.name
                anatomy.follow_router(name, session.selected)
            if session.expert is not None:
                session.expert = max(0, min(routing.shape.num_experts - 1, session.expert))
            if routing.tokens:
                try:
                    self.draw_probe(routing, columns, rows)
                    return
                except BadRouting as error:
                    anatomy.problem = str(error)
        self.draw_without(view, columns, rows)

    def draw_without(self, view: RunView, columns: int, rows: int) -> None:
        """For a run without a probe: why, and how to make one."""
        empty = self.anatomy.routing is not None
        self.show_alone(tokens.without_probe(columns, self.anatomy.problem, empty=empty))

    def draw_probe(self, routing: Routing, columns: int, rows: int) -> None:
        """Between header and last line."""

    def show_alone(self, lines: Sequence[list[Span]]) -> None:
        """Only these lines, in the main part; all others are empty."""
        for rows in self.query(Rows).results(Rows):
            if rows.id not in ("header", "keys"):
                rows.show([])
        self.show(self.MAIN_PART, lines, height="1fr")

    async def action_move(self, by: int) -> None:
        session = self.session
        anatomy = self.anatomy
        if anatomy.routing is None:
            return
        names = anatomy.routing.shape.layer_names
        anatomy.layer = max(0, min(len(names) - 1, anatomy.layer + by))
        routers = [router.name for router in session.run.routers] if session.run else []
        if names[anatomy.layer] in routers:
            session.selected = routers.index(names[anatomy.layer])
            anatomy.follow_router(names[anatomy.layer], session.selected)
        await self.redraw()

    def find(self, back: bool) -> str | None:
        """To where the text begins next; the problem, if any. Reads from the disk."""
        anatomy = self.anatomy
        routing = anatomy.routing
        if routing is None:
            return None
        if not anatomy.found:
            return "no search text; press / to enter one"
        wanted = anatomy.found.encode("utf-8", "replace")
        found = routing.find_text(wanted, anatomy.token, back=back)
        if found is None:
            return f"{anatomy.found!r} is not in the text"
        wrapped = found >= anatomy.token if back else found <= anatomy.token
        anatomy.token = found
        if wrapped:
            return "from the end again" if back else "from the start again"
        return None

    def go_to_expert(self, back: bool) -> str | None:
        """To the next token of the expert; the problem, if any. Reads from the disk."""
        anatomy = self.anatomy
        routing = anatomy.routing
        expert = self.session.expert
        if routing is None or expert is None:
            return None
        layer = routing.shape.layer_names[anatomy.layer]
        found = routing.next_of(anatomy.layer, expert, anatomy.token, back=back)
        if found is None:
            where = "earlier" if back else "later"
            return f"no {where} token chose expert {expert} in {layer}"
        anatomy.token = found
        return None


@dataclass(frozen=True, slots=True)
class OfExpert:
    """What ``e17`` means: the next token of this expert."""

    expert: int


def parse_token(text: str, *, shown: int, tokens: int, experts: int) -> int | OfExpert:
    """What was typed: a token, by the rules for steps, or ``e17``: the next one of expert 17.

    ``BadPlace``: neither; the message explains what to type instead.
    """
    typed = text.strip()
    if found := re.fullmatch(r"e([0-9]{1,6})", typed):
        if (expert := int(found[1])) >= experts:
            raise BadPlace(f"no expert {expert:,}: there are 0 to {experts - 1:,}")
        return OfExpert(expert)
    try:
        place = parse_place(typed, shown=shown, newest=tokens - 1)
    except BadPlace:
        place = time()
    if not isinstance(place, int):
        said = safe_text(typed or "nothing", MOST_CHARACTERS)
        raise BadPlace(f"{said} is not a token: try 12k, 50%, -100, end, or e17 for expert 17")
    if place >= tokens:
        raise BadPlace(f"no token {place:,}: there are 0 to {tokens - 1:,}")
    return place


class _Token(Prompt):
    """To a token, or to the next one of an expert."""

    LABEL = "go to token"
    screen: ProbeScreen

    def hint(self) -> tuple[str, str | None]:
        routing = self.screen.anatomy.routing
        last = routing.tokens - 1 if routing is not None else 0
        return f"0 to {last:,}, 50%, +100, or e17 for expert 17", None

    async def answered(self, text: str) -> None:
        anatomy = self.screen.anatomy
        routing = anatomy.routing
        if routing is None or not routing.tokens:
            return
        experts = routing.shape.num_experts
        try:
            place = parse_token(text, shown=anatomy.token, tokens=routing.tokens, experts=experts)
        except BadPlace as error:
            self.screen.show_message(str(error))
            return
        if isinstance(place, OfExpert):
            self.session.expert = place.expert
            await self.screen.from_disk(self.screen.go_to_expert, False)
        else:
            anatomy.token = place
            await self.screen.redraw()


class _Find(Prompt):
    """To where a text begins next."""

    LABEL = "find"
    screen: ProbeScreen

    def hint(self) -> tuple[str, str | None]:
        return "the text as written", None

    async def answered(self, text: str) -> None:
        anatomy = self.screen.anatomy
        if anatomy.routing is not None and anatomy.routing.tokens:
            anatomy.found = text
            await self.screen.from_disk(self.screen.find, False)


class TokensScreen(ProbeScreen):
    """The text of the probe. The experts of the token at the cursor have colours, and with them
    every token that they have in this layer. The cursor moves by tokens, and from one token of an
    expert to the next.
    """

    CSS = """
    #token-title, #token-legend { height: 1; }
    #token-body { height: 1fr; layout: vertical; }
    .beside #token-body { layout: horizontal; }
    .airy #token-body { margin: 1 0; }
    """
    WORDS: ClassVar = {**_PROBE, **_TOKENS, **LAYER, **ENTROPY, **HEADER}
    READING: ClassVar = (
        "a token has the colour of the expert with its largest weight in this layer",
        "colours are for the experts of the token at the cursor; all others are grey",
        "beside or below: the token at the cursor, its experts, and the same token in all layers",
    )
    BINDINGS: ClassVar = [
        keys.BACK,
        *keys.UP_AND_DOWN,
        *pair(
            "token",
            key("token.previous", "left,h", "token(-1)", "previous token"),
            key("token.next", "right,l", "token(1)", "next token"),
        ),
        key("token.line_up", "K", "line(-1)", "line above"),
        key("token.line_down", "J", "line(1)", "line below"),
        *keys.in_list("token", "token", down="pagedown,space"),
        key("token.next_of_expert", "e", "next_of_expert(1)", "its next token", "next of expert"),
        key("token.previous_of_expert", "E", "next_of_expert(-1)", "its previous token"),
        key("token.light", "enter", "light", "highlight this expert; again: all", "one expert"),
        key("token.go_to", "colon,comma", "ask('token')", "go to a token: 12k, 50%, e17", "go to"),
        key("token.find", "slash", "ask('find')", "find text", "find"),
        key("token.next_match", "n", "match(1)", "next match"),
        key("token.previous_match", "N", "match(-1)", "previous match"),
        key("token.letters", "v", "letters", "letters of the experts below the text"),
        keys.SVG,
        *keys.EVERYWHERE,
    ]
    PARTS = ("header", "token-title", "token-legend", ("token-body", "token-text", "token-panel"))
    MAIN_PART = "token-text"
    PROMPTS: ClassVar = {**BaseScreen.PROMPTS, "token": _Token, "find": _Find}

    _flow: Flow | None = None
    _top = Place(0, 0)

    @property
    def letters(self) -> bool:
        """Whether letters show the experts below the text; by default without colours."""
        chosen = self.anatomy.letters
        return self.app.no_color if chosen is None else chosen

    def draw_probe(self, routing: Routing, columns: int, rows: int) -> None:
        """The text around the cursor, and the token beside it, or below in a narrow window."""
        layer = self.anatomy.layer
        token = self.anatomy.token
        beside = columns >= _BESIDE_FROM
        airy = rows >= AIRY_FROM_ROWS
        self.set_class(beside, "beside")
        self.set_class(airy, "airy")
        panel = _WIDE_PANEL if columns >= _WIDE_FROM else _PANEL
        panel_rows = height = rows - 4 - 2 * airy
        width = columns - _MARGIN
        if beside:
            width -= panel + _GAP
        else:
            panel = columns
            panel_rows = min(_MOST_BELOW, height // 2)
            height -= panel_rows
        if self._flow is None or (self._flow.routing, self._flow.width) != (routing, width):
            self._flow = Flow(routing, width)
        self.list_rows = max(1, height // 2 if self.letters else height)
        self._top = self._flow.scrolled(self._top, self._flow.place_of(token), self.list_rows)
        shown = self._flow.shown(self._top, self.list_rows)
        last = next((line.pieces[-1].token for line in reversed(shown) if line.pieces), token)
        first = min(token, shown[0].first)
        chosen = routing.chosen(layer, first, max(last, token) + 1)
        own = tokens.colours(chosen[token - first])
        light = tokens.Highlight(first, chosen, own, token, self.session.expert)
        text = tokens.text_lines(shown, light, routing.slices, width, letters=self.letters)
        margined = [[Span(" " * _MARGIN), *line] for line in text][:height]
        self.show("token-text", margined, width=width + _MARGIN + _GAP, height=height)
        glyphs = self.session.glyphs
        lines = tokens.panel(routing, layer, token, own, glyphs, panel - 1, panel_rows)
        self.show("token-panel", lines, width=panel, height=panel_rows)
        title = tokens.title(routing, layer, token, columns, light.choice(token))
        self.show("token-title", [title])
        shares = tokens.busiest(routing, layer)
        self.show("token-legend", [tokens.legend(light, shares, columns, letters=self.letters)])
        routing.release()

    async def _go(self, token: int) -> None:
        routing = self.anatomy.routing
        if routing is not None and routing.tokens:
            self.anatomy.token = max(0, min(routing.tokens - 1, token))
            await self.redraw()

    async def action_token(self, by: int) -> None:
        await self._go(self.anatomy.token + by)

    async def action_line(self, by: int) -> None:
        if self._flow is not None:
            await self._go(self._flow.token_below(self.anatomy.token, by))

    async def action_page(self, direction: int) -> None:
        await self.action_line(direction * max(1, self.list_rows - 1))

    async def action_next_of_expert(self, direction: int) -> None:
        session = self.session
        if session.expert is None:
            session.expert = self._expert_here()
        if session.expert is None:
            self.show_message("no expert was chosen here", "dim")
            return
        await self.from_disk(self.go_to_expert, direction < 0)

    async def action_light(self) -> None:
        session = self.session
        session.expert = self._expert_here() if session.expert is None else None
        await self.redraw()

    async def action_match(self, by: int) -> None:
        await self.from_disk(self.find, by < 0)

    async def action_letters(self) -> None:
        self.anatomy.letters = not self.letters
        await self.redraw()

    def _expert_here(self) -> int | None:
        routing = self.anatomy.routing
        if routing is None or not routing.tokens:
            return None
        return next(iter(routing.choice(self.anatomy.layer, self.anatomy.token).experts), None)


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """Of a run without a probe: which experts its evaluation on held-out text chose."""

    step: int
    """Of the evaluation."""
    slices: Sequence[str]
    """Names of the sources."""
    shape: Shape
    """Of the routers that the evaluation counted."""
    tables: Tables

    @classmethod
    def of(cls, view: RunView) -> "HeldOut | None":
        """The last evaluation with counts by source; ``None`` if the log has none."""
        event = view.held_out
        if event is None or event.slices is None:
            return None
        found = event.slices
        logged = len(found.counts[0]) if found.counts else 0  # none ahead
        routers = [layer.router for layer in view.layers[:logged]]
        if not routers:
            return None
        shape = Shape(
            tuple(router.depth for router in routers),
            tuple(router.name for router in routers),
            routers[0].num_experts,
            routers[0].top_k,
            capacity=1,
        )
        tables = Tables(counts=found.counts, noise=found.noise)
        return cls(event.step or 0, found.names, shape, tables)


class SlicesScreen(ProbeScreen):
    CSS = """
    #slice-top, #slice-heads { height: 2; }
    .airy #slice-top, .airy #slice-heads, .airy #slice-detail { margin-top: 1; }
    """
    WORDS: ClassVar = {**_SLICES, **_PROBE, **LAYER, **SHARE, **HEADER}
    READING: ClassVar = (
        "a row is an expert: its share, how much more or less a slice chooses it, what it reads",
        "amber is more than overall, blue is less, a dot no more than chance",
    )
    BINDINGS: ClassVar = [
        keys.BACK,
        *pair(
            "expert",
            key("slice.expert_up", "up,k", "expert(-1)", "expert above"),
            key("slice.expert_down", "down,j", "expert(1)", "expert below"),
        ),
        *pair(
            "layer",
            key("slice.previous_layer", "left,h", "move(-1)", "previous layer"),
            key("slice.next_layer", "right,l", "move(1)", "next layer"),
        ),
        *keys.in_list("slice", "expert", "expert", "pagedown,space"),
        key("slice.tokens", "enter", "open_tokens", "show its tokens", "its tokens"),
        key("slice.order", "s", "order", "most telling first, by slice, by number", "order"),
        key("slice.right", "tab", "more_slices(1)", "slices further right"),
        key("slice.left", "shift+tab", "more_slices(-1)", "slices further left"),
        keys.SVG,
        *keys.EVERYWHERE,
    ]
    PARTS = ("header", "slice-top", "slice-heads", "slice-rows", "slice-detail")
    MAIN_PART = "slice-rows"

    _ordering = slices.Ordering.TELLING
    _order: Sequence[slices.ExpertRow] = ()
    _at = _first_slice = 0

    _held_out: HeldOut | None = None

    def draw_without(self, view: RunView, columns: int, rows: int) -> None:
        self._held_out = held_out = HeldOut.of(view)
        if held_out is None:
            super().draw_without(view, columns, rows)
            return
        self.anatomy.layer = min(self.session.selected, len(held_out.shape.layers) - 1)
        self.draw_probe(held_out, columns, rows)

    def draw_probe(self, routing: Routing | HeldOut, columns: int, rows: int) -> None:
        """The table of the chosen layer, and the expert at the cursor."""
        names = routing.slices
        layer = self.anatomy.layer
        shape = routing.shape
        try:
            table = _table(routing, layer)
        except slices.NoTables as error:
            self._order = ()
            said = [("", ""), (f"  {error}", "warn"), ("  its tokens can be read with 7", "dim")]
            self.show_alone([pad([Span(text, role)], columns) for text, role in said])
            return
        self._order = table.ordered(self._ordering)
        experts = [row.expert for row in self._order]
        if self.session.expert in experts:  # it stays chosen when the order changes
            self._at = experts.index(self.session.expert)
        self._at = max(0, min(self._at, len(experts) - 1))
        airy = rows >= AIRY_FROM_ROWS
        self.set_class(airy, "airy")
        detail_rows = 6 if airy else 3
        which = f"{layer + 1} of {len(shape.layers)}"
        top = [slices.summary(table, names, shape.layer_names[layer], which, columns)]
        if isinstance(routing, HeldOut):
            top.append(slices.takers(table, names, routing.step, columns))
        else:
            glyphs = self.session.glyphs
            found = slices.identity(routing.tables, layer, shape.layer_names, glyphs, columns)
            top.append(found)
        room = max(1, rows - _SLICE_FRAME - len(top) - detail_rows - 3 * airy)
        shown = self.in_view(self._at, len(self._order), room)
        layout = slices.fit_slices(names, columns, self._first_slice)
        self._first_slice = layout.shown.start
        colour = not self.app.no_color
        lines = [
            slices.expert_line(
                self._order[at], layout, self.anatomy.name_of, chosen=at == self._at, colour=colour
            )
            for at in shown
        ]
        self.show("slice-top", top, height=len(top))
        self.show("slice-heads", slices.heads(layout, names, self._ordering, table))
        self.show("slice-rows", lines, self.session.look.palette, height=len(lines))
        spare = room - len(lines)  # the detail is directly below the experts
        blank = spare > 0 and not airy
        height = detail_rows + spare
        detail = slices.detail(
            self._order[self._at], table, names, self.anatomy.name_of, columns, height - blank
        )
        if blank:
            detail.insert(0, [])
        self.show("slice-detail", detail, height=height)

    async def action_move(self, by: int) -> None:
        if self.anatomy.routing is None and self._held_out is not None:
            most = len(self._held_out.shape.layers) - 1
            self.session.selected = max(0, min(most, self.anatomy.layer + by))
            await self.redraw()
        else:
            await super().action_move(by)

    async def action_expert(self, by: int) -> None:
        if self._order:
            self._at = max(0, min(len(self._order) - 1, self._at + by))
            self.session.expert = self._order[self._at].expert
            await self.redraw()

    async def action_page(self, direction: int) -> None:
        await self.action_expert(direction * self.list_rows)

    async def action_order(self) -> None:
        self._ordering = after(self._ordering, list(slices.Ordering))
        await self.redraw()

    async def action_more_slices(self, by: int) -> None:
        self._first_slice = max(0, self._first_slice + by)
        await self.redraw()

    async def action_open_tokens(self) -> None:
        """Show the next token of the expert at the cursor, with only this expert highlighted."""
        if not self._order:
            return
        if self.anatomy.routing is None:
            self.show_message("its tokens are in a probe: moe-microscope probe MODEL TEXT")
            return
        self.session.expert = self._order[self._at].expert
        await self.from_disk(self.go_to_expert, False)
        if not self.message_shown:
            await self.app.run_action("app.go('tokens')")


@lru_cache(maxsize=1)
def _table(routing: Routing | HeldOut, layer: int) -> slices.SliceTable:
    experts = routing.shape.num_experts
    return slices.slice_table(routing.tables, layer, len(routing.slices), experts)
