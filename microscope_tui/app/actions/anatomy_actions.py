"""What the screens of a probe share: its file, the layer, the expert, and the prompts."""

from microscope_tui.app.actions.prompt_actions import PromptActions
from microscope_tui.app.place import BadPlace
from microscope_tui.app.prompt import Kind
from microscope_tui.app.token_place import OfExpert, parse_token
from microscope_tui.app.widgets.rows import Rows
from microscope_tui.lines import frame, tokens
from microscope_tui.routing import Routing
from microscope_tui.watch import RunView


class AnatomyActions(PromptActions):
    """Moves between the layers of the file; they need not be those of the run."""

    def sync_layer(self, view: RunView, routing: Routing) -> None:
        """Take over the layer and the expert that another screen chose."""
        session, anatomy = self.session, self.session.anatomy
        if session.selected < len(view.layers):
            name, chosen = view.layers[session.selected].router.name, session.selected
            anatomy.follow_router(name, chosen)
        if session.expert is not None:
            session.expert = max(0, min(routing.shape.num_experts - 1, session.expert))

    async def opened(self, view: RunView) -> Routing | None:
        """The routing file of the open run."""
        watch = self.session.watch
        if watch is None:
            return None
        routing = await self.session.anatomy.open(watch.path)
        if routing is not None:
            self.sync_layer(view, routing)
        return routing if routing is not None and routing.tokens else None

    def draw_header(self, view: RunView) -> None:
        """The line of the run, as on every screen."""
        header = frame.header(view, self.room.width, self.session.glyphs)
        self.query_one("#header", Rows).show([header])
        self.draw_last_line()

    def draw_nothing(self, selector: str) -> None:
        """Without a probe: how to make one."""
        anatomy = self.session.anatomy
        empty = anatomy.routing is not None
        lines = tokens.without_probe(self.room.width, anatomy.problem, empty=empty)
        for rows in self.query(Rows).results(Rows):
            if rows.id not in ("header", "keys"):
                rows.show([])
        self.query_one(selector, Rows).show(lines)

    async def action_move(self, by: int) -> None:
        """Choose another layer of the file."""
        session, anatomy = self.session, self.session.anatomy
        if anatomy.routing is None:
            return
        names = anatomy.routing.shape.layer_names
        anatomy.layer = max(0, min(len(names) - 1, anatomy.layer + by))
        run = session.watch.run if session.watch is not None else None
        routers = [router.name for router in run.routers] if run is not None else []
        if names[anatomy.layer] in routers:
            session.selected = routers.index(names[anatomy.layer])
            anatomy.follow_router(names[anatomy.layer], session.selected)
        await self.redraw()

    def prompt_hint(self) -> tuple[str, str | None]:
        routing = self.session.anatomy.routing
        if self.prompt.kind == "token":
            last = routing.tokens - 1 if routing is not None else 0
            return f"0 to {last:,}, 50%, +100, or e17 for expert 17", None
        if self.prompt.kind == "find":
            return "the text as written", None
        return super().prompt_hint()

    async def answered(self, kind: Kind, text: str) -> None:
        routing = self.session.anatomy.routing
        if routing is None or not routing.tokens:
            return
        if kind == "find":
            self.session.anatomy.found = text
            await self.from_disk(self.find, False)
            return
        try:
            place = parse_token(
                text,
                shown=self.session.anatomy.token,
                tokens=routing.tokens,
                experts=routing.shape.num_experts,
            )
        except BadPlace as error:
            self.tell(str(error))
            return
        if isinstance(place, OfExpert):
            self.session.expert = place.expert
            await self.from_disk(self.go_to_expert, False)
        else:
            self.session.anatomy.token = place
            await self.redraw()

    def find(self, back: bool) -> str | None:
        """Go to the next token where the text begins; the problem, if any. Reads from the disk."""
        anatomy, routing = self.session.anatomy, self.session.anatomy.routing
        if routing is None:
            return None
        if not anatomy.found:
            return "nothing to find: / asks for a text"
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
        """Go to the next token of the chosen expert; the problem, if any. Reads from the disk."""
        anatomy, routing = self.session.anatomy, self.session.anatomy.routing
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
