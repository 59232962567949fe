"""The main screen: one row per layer."""

from collections.abc import Sequence
from functools import partial
from itertools import chain
from textwrap import wrap
from typing import ClassVar

from msgspec.structs import replace

from microscope_tui.draw import frame, table, time_line, words
from microscope_tui.draw.heat import Heat, Measure, has_legend, highest_possible, legend
from microscope_tui.draw.spans import Line, Span, dim, line_width, pad, plain, shortened
from microscope_tui.draw.table import TableLayout, expert_line, fit, matching
from microscope_tui.kit import keys
from microscope_tui.kit.base import draw_header, ribbon, ribbon_columns
from microscope_tui.kit.glossary import ALERTS, CELLS, CONDITIONS, HEADER, LAYERS, TIME
from microscope_tui.kit.keys import key
from microscope_tui.kit.prompts import TopK
from microscope_tui.kit.rows import Tiles
from microscope_tui.kit.run_screen import RunScreen
from microscope_tui.kit.session import Session
from microscope_tui.runlog import plural, safe_text
from microscope_tui.watch import RunView, RunWatch, pin


class MainScreen(RunScreen):
    CSS = """
    #heads, #notes, #legend { height: 1; }
    #verdict { height: 2; }
    #table { layout: horizontal; }
    #balance, #entropy, #drop { margin-left: 2; }
    MainScreen.roomy #verdict { height: 3; margin: 1 0; }
    MainScreen #legend { display: none; }
    MainScreen.legend #legend { display: block; }
    MainScreen #notes { display: none; }
    MainScreen.noted #notes { display: block; }
    MainScreen.small #notes { display: none; }
    """
    WORDS: ClassVar = {**LAYERS, **CELLS, **CONDITIONS, **ALERTS, **HEADER, **TIME}
    BINDINGS: ClassVar = [
        *keys.LAYERS,
        keys.OPEN_LAYER,
        *keys.EXPERTS,
        *keys.ALERTS,
        *keys.TIME,
        key("look.overlay", "v", "look('overlay')", "load, bias, load per rank", "view"),
        key("look.order", "s", "look('order')", "experts by number, by load"),
        keys.PALETTE,
        key("look.compare", "b", "compare", "compare with this step; again: stop", "compare"),
        keys.FILTER,
        *keys.OUT,
        key("main.keys", "m", "ask('k')", "use the proposed keys of another tool's run"),
        key("main.clear", "escape", "clear", "clear the filter and the cursor"),
        *keys.EVERYWHERE,
    ]

    PARTS = (
        *("header", "verdict", "heads"),
        ("table", "label", "load", "balance", "entropy", "drop"),
        *("loss", "legend", "ribbon", "notes", "waiting"),
    )

    WIDGETS: ClassVar = {"load": Tiles}
    PROMPTS: ClassVar = {**RunScreen.PROMPTS, "k": TopK}

    layers_shown: Sequence[int] = ()
    """Indices of the layers that the filter leaves."""
    _drawn: RunView | None = None
    """The view of the table on the screen."""
    _drawn_of: Sequence[object] = ()

    async def draw_all(self) -> None:
        session, watch = self.session, self.session.watch
        if not session.has_run and (self._drawn is None or session.is_blank):
            self._draw_waiting()
            return
        self.set_class(False, "waiting")
        probe = session.view(1, 1, (0,))  # of one layer, what was logged at all
        if probe is None:
            return
        self.leads_to_probe = await session.has_probe()
        self.follow_pinned()
        session.look_at_worst(probe)
        self.layers_shown = matching(probe, session.filter)
        layout = self._layout(probe)
        if not draw_header(self, probe):
            self._drawn = None
            return
        self.in_view(self.position(), len(self.layers_shown), layout.visible_layers)
        await self._make_room(layout)
        content = self._depends_on(probe, layout)
        drawn = self._drawn
        if drawn is None or content != self._drawn_of:
            view = self._view(watch, layout, self._visible())
            if view is not None:
                self._draw_around(view, layout)
                self._draw_table(view, layout)
                self._drawn = view
                self._drawn_of = content
        elif (view := self._view(watch, layout, ())) is not None:  # the table is unchanged
            self._draw_around(view, layout)
            self._draw_labels(drawn, layout)

    def _draw_waiting(self) -> None:
        self.set_class(True, "waiting")
        self.remove_class("legend", "noted")
        self.draw_last_line()

    def _layout(self, probe: RunView) -> TableLayout:
        columns, rows = self.room
        session = self.session
        say = session.expert is not None or bool(session.filter)
        shown = len(self.layers_shown)
        layout = fit(probe, columns, rows, shown=shown, noted=say, seen=session.seen)
        self.set_class(layout.roomy, "roomy")
        self.set_class(layout.noted, "noted")
        self.set_class(layout.legend, "legend")
        self.query_one("#verdict").styles.height = layout.verdict_lines
        return layout

    async def _make_room(self, layout: TableLayout) -> None:
        """Give the columns of the table their widths, none to those that are not shown."""
        await self.query_one(Tiles).fit(layout.heat)
        widths = {
            "label": layout.label,
            "load": layout.heat,
            "balance": layout.curve,
            "entropy": layout.entropy,
            "drop": layout.drop,
        }
        for name, width in widths.items():
            part = self.query_one(f"#{name}")
            part.display = width > 0
            part.styles.width = width
        self.query_one("#table").styles.height = layout.table_rows

    def _depends_on(self, probe: RunView, layout: TableLayout) -> list[object]:
        """What the table depends on: while it is the same, only what is around it is drawn."""
        session, watch = self.session, self.session.watch
        log = watch and (watch, watch.generation, watch.version)
        moment = session.time.pin, session.time.window
        drawn_with = session.reference, session.look, session.steady
        chosen = None
        if session.expert is not None:
            chosen = session.selected, session.expert
        severities = [layer.severity for layer in probe.layers]
        return [log, moment, drawn_with, layout, [*self._visible()], chosen, severities]

    def _visible(self) -> Sequence[int]:
        return self.layers_shown[self.first : self.first + self.list_rows]

    def _view(
        self, watch: RunWatch | None, layout: TableLayout, visible: Sequence[int]
    ) -> RunView | None:
        """``None`` if another run was opened meanwhile."""
        widest = layout.columns if layout.loss_rows else layout.spark
        points = max(24, widest * self.session.glyphs.points)
        view = self.session.view(points, ribbon_columns(self), visible)
        return view if self.session.watch is watch else None

    def _draw_around(self, view: RunView, layout: TableLayout) -> None:
        session, palette = self.session, self.session.look.palette
        heat = self._heat(view)
        lines = layout.verdict_lines
        verdict = frame.verdict(view, layout.columns, lines, session.seen, compact=layout.compact)
        samples = pad([], layout.columns)
        room = layout.columns - layout.label
        if view.layers and not any(layer.load for layer in view.layers):
            samples = pad([Span(f" {words.no_counts(view)}", "faint")], layout.columns)
        elif has_legend(heat, view.layers):  # what the colours mean
            per_cell, most = layout.experts_per_cell, highest_possible(view.layers)
            cells = legend(heat, room, per_cell=per_cell, most=most)
            samples = [Span(" " * layout.label), *cells]
        if not layout.legend and not plain(verdict[-1]):
            verdict[-1] = samples
        draw_header(self, view)
        self.show("verdict", verdict, palette)
        self.show("legend", [samples], palette)
        own = bool(self._of_one_step(view))
        heads = [table.column_heads(view, layout, heat, session.recent().steps, own)]
        if layout.numbered:
            heads.append(table.expert_numbers(view, layout, heat))
        self.show("heads", heads, height=len(heads))
        past = (session.time.past_of_pipe() or "").split(":")[0]
        chosen = expert_line(view, session.selected, session.expert, heat)
        if not chosen and session.filter:
            count = f"{len(self.layers_shown)} of {len(view.layers)} layers"
            chosen = f"filter {safe_text(session.filter, 40)}: {count}"
        notes = time_line.notes(view, layout.columns, layout.hidden, past, chosen)
        self.show("notes", [notes])
        self.show("ribbon", [ribbon(self, view)])
        loss = table.loss_curve(view, layout, session.glyphs) if layout.loss_rows else []
        self.show("loss", loss, height=layout.loss_rows)
        self.draw_last_line()

    def _draw_table(self, view: RunView, layout: TableLayout) -> None:
        session, glyphs, cursor = self.session, self.session.glyphs, view.timeline.cursor
        visible = [view.layers[index] for index in self._visible()]
        self._draw_labels(view, layout)
        parts = {
            "balance": [table.balance(layer, layout, glyphs, cursor) for layer in visible],
            "entropy": [
                table.entropy(layer, layout, glyphs, cursor, view.timeline.entropy_ends)
                for layer in visible
            ],
            "drop": [table.drop(layer, layout, glyphs) for layer in visible],
        }
        for name, rows in parts.items():
            self.show(name, [*chain(*rows)])
        recent = session.recent()
        loads: list[Line] = []
        heat = self._heat(view)
        single = self._of_one_step(view)
        for layer in visible:
            mean, noise = recent.of(layer)
            if heat.look.measure is Measure.BIAS:
                noise = 0.0  # a state of the router, not of a step
            steady = replace(heat, levels=partial(session.levels, noise=noise))
            shown = (layer, layout, heat) if layer.index in single else (mean, layout, steady)
            loads += table.load(*shown, session.expert if layer.index == session.selected else None)
        if not visible:
            loads = [pad([dim("no layer matches" if view.layers else "")], layout.heat)]
        self.query_one(Tiles).show(loads, session.look.palette)

    def _heat(self, view: RunView) -> Heat:
        session = self.session
        return Heat(
            session.look,
            view.run,
            session.reference,
            colour=not self.app.no_color,
            given_ranks=session.preferences.cost.ranks,
            glyphs=session.glyphs,
        )

    def _of_one_step(self, view: RunView) -> set[int]:
        return table.of_one_step(view, self.session.look, self.session.recent().steps)

    def _draw_labels(self, view: RunView, layout: TableLayout) -> None:
        chosen = self.session.selected
        single = self._of_one_step(view)
        labels: list[Line] = []
        for at in self._visible():
            mark = " "
            if at in single:
                mark = table.MARK
            labels += table.label(view.layers[at], layout, at == chosen, mark)
        self.show("label", labels)

    async def action_compare(self) -> None:
        session, watch = self.session, self.session.watch
        if session.reference is not None:
            session.compare_with(None)
            self.show_message("no comparison", "accent")
        elif watch is not None:
            session.compare_with(session.time.pin or pin(watch))
            self.show_message("comparing with this step: move in time, or open 5 compare", "accent")
        await self.redraw()

    def draw_last_line(self) -> None:
        super().draw_last_line()
        if self.has_class("waiting"):
            self.show("waiting", _waiting_lines(self.session, *self.room, self.said))

    async def action_clear(self) -> None:
        self.session.filter = ""
        self.session.expert = None
        await self.redraw()


def _waiting_lines(session: Session, columns: int, rows: int, said: Line) -> list[Line]:
    text: list[Line] = [[Span("MoE Microscope", "brand")], [], *_message(session, columns), []]
    more = len(session.fleet.runs) > 1
    runs: Line = [Span("r", "accent"), dim(" all runs   ")] if more else []
    text.append(said or [*runs, Span("q", "accent"), dim(" quit")])
    lines: list[Line] = [[] for _ in range(max(0, (rows - len(text)) // 2))]
    lines += [[Span(" " * max(0, (columns - line_width(line)) // 2)), *line] for line in text]
    return [pad(line, columns) for line in lines[:rows]]


def _message(session: Session, columns: int) -> list[Line]:
    watch = session.watch
    if watch is not None and watch.error:
        return [[dim(watch.file.name)], [Span(watch.error, "crit")]]
    bad: list[Line] = []
    if watch is not None and watch.defects.count:
        first = watch.defects.first[0] if watch.defects.first else ""
        bad = [[Span(f"{plural(watch.defects.count, 'bad line')}, {first}", "warn")]]
        how = "repair: moe-microscope check --format-only"
        bad.append([dim("" if watch.file.foreign else how)])
    if session.pipe_ended:
        return [[Span("standard input ended without a step", "warn")], *bad]
    if session.fleet.piped:
        return [[dim("waiting for the first step on standard input")], *bad]
    if watch is None:
        where = safe_text(session.fleet.root, max(10, columns - 24))
        return [
            [dim("waiting for a run in "), Span(where)],
            [dim("start one with  "), Span("python train.py", "accent")],
            [],
            [dim("or in your own trainer (from microscope_tui.probe import attach)")],
            [Span(f'probe = attach(model, "{where}/mine")', "accent")],
            [Span("probe.step(loss=loss)  # after each optimizer step", "accent")],
        ]
    if not watch.complete:
        return [[dim("reading "), Span(watch.file.name)], *bad]
    age = words.age(watch.state()[1])
    if watch.source.missing:
        return _unknown_keys(watch.source.missing, columns)
    name = Span(shortened(watch.file.name, max(10, columns - 30)))
    since = [dim("last written "), Span(age), dim(" ago")] if age else []
    return [[dim("waiting for the first step of "), name], since, *bad]


def _unknown_keys(text: str, columns: int) -> list[Line]:
    """What a run of another tool holds instead of readings of routers, and how to show it."""
    width = max(20, min(columns - 8, 100))
    about, show, command = text.partition(" Show it with: ")
    lines: list[Line] = [[Span(line)] for line in wrap(about, width)]
    if show:
        lines += [[], [Span("m", "accent"), dim(" show it so, or in a shell:")]]
        lines += [
            [Span(line, "accent")] for line in command.replace(" --", " \\\n  --").split("\n")
        ]
    return [pad(line, width) for line in lines]
