"""The text of a probe, every token in the colour of its expert; the cursor shows the choice.

Colours, letters and the panel are of the chosen layer. Reading the file takes microseconds where
the cursor is; searches run in a thread.
"""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container

from microscope_tui.app import probe_keys
from microscope_tui.app.actions.anatomy_actions import AnatomyActions
from microscope_tui.app.session import Session
from microscope_tui.app.widgets.rows import Rows
from microscope_tui.lines import Busiest, Flow, Light, Place, Span, tokens
from microscope_tui.report import tokens_json
from microscope_tui.routing import BadRouting, Routing
from microscope_tui.watch import RunView

_BESIDE_FROM, _WIDE_FROM = 72, 110
_PANEL, _WIDE_PANEL = 26, 38
_MARGIN, _GAP = 2, 3
_AIRY_FROM_ROWS = 30
_BRIEF_ROWS = 3


class TokensScreen(AnatomyActions):
    """Moves through the tokens, and from one token of an expert to the next."""

    CSS = """
    #token-title, #token-legend { height: 1; }
    #token-body { height: 1fr; layout: vertical; }
    .beside #token-body { layout: horizontal; }
    .airy #token-body { margin: 1 0; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [*probe_keys.TOKENS]

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._flow: Flow | None = None
        self._top = Place(0, 0)
        self._rows = 10
        self._busiest: tuple[Routing, int, Busiest] | None = None

    def compose(self) -> ComposeResult:
        glyphs = self.session.glyphs
        yield Rows(glyphs, id="header")
        yield Rows(glyphs, id="token-title")
        yield Rows(glyphs, id="token-legend")
        with Container(id="token-body"):
            yield Rows(glyphs, id="token-text")
            yield Rows(glyphs, id="token-panel")
        yield Rows(glyphs, id="keys")

    async def redraw(self) -> None:
        view = self.session.view(1, 1, range(0))
        if view is None or self.draw_small(view):
            return
        routing = await self.opened(view)
        if routing is None:
            self.draw_nothing("#token-text")
        else:
            try:
                self._draw(routing)
                routing.release()
            except BadRouting as error:
                self.session.anatomy.problem = str(error)
                self.draw_nothing("#token-text")
        self.draw_header(view)

    @property
    def letters(self) -> bool:
        """Whether letters stand below the text."""
        chosen = self.session.anatomy.letters
        return self.app.no_color if chosen is None else chosen

    def _draw(self, routing: Routing) -> None:
        session, anatomy, (columns, rows) = self.session, self.session.anatomy, self.room
        layer, token = anatomy.layer, anatomy.token
        beside, airy = columns >= _BESIDE_FROM, rows >= _AIRY_FROM_ROWS
        self.set_class(beside, "beside")
        self.set_class(airy, "airy")
        panel = _WIDE_PANEL if columns >= _WIDE_FROM else _PANEL
        body = rows - 4 - 2 * airy
        height = body if beside else body - _BRIEF_ROWS
        width = columns - panel - _MARGIN - _GAP if beside else columns - _MARGIN
        light = self._draw_text(routing, layer, token, width, height)
        detail = tokens.detail_of(routing, layer, token)
        part = self.query_one("#token-panel", Rows)
        part.styles.width, part.styles.height = (panel, body) if beside else (columns, _BRIEF_ROWS)
        if beside:
            size = (panel - 1, body)
            part.show(tokens.panel(routing, detail, light.busiest, session.glyphs, *size))
        else:
            part.show(tokens.brief(detail, routing, columns))
        title = tokens.title(routing, layer, token, columns, light.choice(token))
        experts = routing.shape.num_experts
        legend = tokens.legend(light, experts, columns, letters=self.letters)
        self.query_one("#token-title", Rows).show([title])
        self.query_one("#token-legend", Rows).show([legend])

    def _draw_text(
        self, routing: Routing, layer: int, token: int, width: int, height: int
    ) -> Light:
        if self._flow is None or (self._flow.routing, self._flow.width) != (routing, width):
            self._flow = Flow(routing, width)
        self._rows = max(1, height // 2 if self.letters else height)
        self._top = self._flow.scrolled(self._top, self._flow.place_of(token), self._rows)
        lines = self._flow.shown(self._top, self._rows)
        last = next((line.pieces[-1].token for line in reversed(lines) if line.pieces), token)
        first = min(token, lines[0].first)
        light = Light(
            first,
            routing.chosen(layer, first, max(last, token) + 1),
            self._busiest_of(routing, layer),
            token,
            self.session.expert,
        )
        part = self.query_one("#token-text", Rows)
        part.styles.width, part.styles.height = width + _MARGIN + _GAP, height
        text = tokens.text_lines(lines, light, routing.slices, width, letters=self.letters)
        part.show([[Span(" " * _MARGIN), *line] for line in text][:height])
        return light

    def _busiest_of(self, routing: Routing, layer: int) -> Busiest:
        known = self._busiest
        if known is None or known[:2] != (routing, layer):
            known = self._busiest = (routing, layer, tokens.busiest(routing, layer))
        return known[2]

    def as_json(self, view: RunView) -> str:
        anatomy = self.session.anatomy
        if anatomy.routing is None:
            return super().as_json(view)
        return tokens_json(anatomy.routing, anatomy.layer, anatomy.token)

    async def _go(self, token: int) -> None:
        routing = self.session.anatomy.routing
        if routing is not None and routing.tokens:
            self.session.anatomy.token = max(0, min(routing.tokens - 1, token))
            await self.redraw()

    async def action_token(self, by: int) -> None:
        """Move the cursor by tokens."""
        await self._go(self.session.anatomy.token + by)

    async def action_first(self) -> None:
        """Go to the first token."""
        await self._go(0)

    async def action_last(self) -> None:
        """Go to the last token."""
        await self._go(1 << 62)

    async def action_line(self, by: int) -> None:
        """Move the cursor by lines, in its column."""
        if self._flow is not None:
            await self._go(self._flow.token_below(self.session.anatomy.token, by))

    async def action_page(self, direction: int) -> None:
        """Move the cursor by a page."""
        await self.action_line(direction * max(1, self._rows - 1))

    async def action_next_of_expert(self, direction: int) -> None:
        """Go to the next, or previous, token of an expert, which stays lit."""
        if self.session.expert is None:
            self.session.expert = self._expert_here()
        if self.session.expert is None:
            self.tell("no expert was chosen here", "dim")
            return
        await self.from_disk(self.go_to_expert, direction < 0)

    async def action_light(self) -> None:
        """Light up the expert at the cursor, or all again."""
        session = self.session
        session.expert = self._expert_here() if session.expert is None else None
        await self.redraw()

    async def action_match(self, by: int) -> None:
        """Go to the next, or previous, place of the text that was looked for."""
        await self.from_disk(self.find, by < 0)

    async def action_letters(self) -> None:
        """Show letters below the text, or hide them."""
        self.session.anatomy.letters = not self.letters
        await self.redraw()

    def _expert_here(self) -> int | None:
        anatomy = self.session.anatomy
        if anatomy.routing is None or not anatomy.routing.tokens:
            return None
        return next(iter(anatomy.routing.choice(anatomy.layer, anatomy.token).experts), None)
