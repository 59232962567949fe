"""The card of one expert: its load now, its history, and where else it has alerts.

A worker thread reads the history from the log; the previous one stays until then.
"""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical

from microscope_tui.app import keys
from microscope_tui.app.actions.chart_actions import (
    MOST_POINTS,
    RIBBON_FROM_ROWS,
    ROOMY_FROM_ROWS,
    ChartActions,
)
from microscope_tui.app.session import Session
from microscope_tui.app.widgets.rows import Rows
from microscope_tui.lines import Line, LoadSeries, arranged, expert_card, time_scale
from microscope_tui.watch import LayerView, RunView, RunWatch, Window, samples

_NOTHING = LoadSeries(())
_LEAST_SAMPLES, _MOST_SAMPLES = 48, 160
_COARSE = 32  # a window that moved by less than one in so many of its steps keeps its samples


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Identifies samples: router, log and window."""

    watch: RunWatch
    generation: int
    complete: bool
    router: int
    window: Window
    count: int

    def fits(self, other: "_Wanted") -> bool:
        """Whether the samples of the other key can be reused."""
        first, last = other.window
        room = max(0, last - first) // _COARSE
        same = (self.watch, self.generation, self.complete, self.router, self.count)
        return (
            same == (other.watch, other.generation, other.complete, other.router, other.count)
            and abs(self.window.first - first) <= room
            and abs(self.window.last - last) <= room
        )


class ExpertScreen(ChartActions):
    """Left and right move to the neighbouring expert."""

    CSS = f"""
    {ChartActions.CSS}
    #layer-title {{ height: 1; }}
    #facts {{ height: 2; }}
    .roomy #layer-title, .roomy #more {{ margin-top: 1; }}
    """
    BINDINGS: ClassVar[list[BindingType]] = [*keys.EXPERT]

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._series = _NOTHING
        self._of: _Wanted | None = None
        """What the series was read for."""
        self._asked: _Wanted | None = None
        self._problem = ""

    def compose(self) -> ComposeResult:
        glyphs = self.session.glyphs
        yield Rows(glyphs, id="header")
        yield Rows(glyphs, id="layer-title")
        yield Rows(glyphs, id="facts")
        with Vertical(id="charts"):
            yield Rows(glyphs, id="chart-load")
            yield Rows(glyphs, id="chart-bias")
            yield Rows(glyphs, id="chart-place")
        yield Rows(glyphs, id="more")
        yield Rows(glyphs, id="ribbon")
        yield Rows(glyphs, id="keys")

    async def redraw(self) -> None:
        session, (columns, rows) = self.session, self.room
        view, selected = (
            session.view(MOST_POINTS, self.ribbon_columns(), range(0)),
            session.selected,
        )
        if view is None or selected >= len(view.layers):
            return
        if self.draw_small(view):
            return
        layer = view.layers[selected]
        expert = self._expert(layer)
        self._ask_for_samples(view, columns)
        known = self._known()
        moment = "" if session.time.following else self.moment(view)
        title = expert_card.title(view, layer, expert, moment, columns)
        self.query_one("#layer-title", Rows).show([title])
        self.query_one("#facts", Rows).show(expert_card.facts(view, layer, expert, known, columns))
        more = self._more(view, layer, expert, known)
        roomy = rows >= ROOMY_FROM_ROWS
        self.set_class(roomy, "roomy")
        self.show_part("#more", more)
        with_ribbon = rows >= RIBBON_FROM_ROWS
        self.query_one("#ribbon").set_class(not with_ribbon, "gone")
        room = rows - 5 - len(more) - with_ribbon - 4 * roomy
        self._draw_charts(view, layer, expert, known, room)
        self.draw_frame(view)

    def _expert(self, layer: LayerView) -> int:
        """The chosen expert; by default the one farthest from fair."""
        chosen, experts = self.session.expert, layer.router.num_experts
        if chosen is None:
            chosen = expert_card.most_remarkable(layer.load or ())
        self.session.expert = max(0, min(experts - 1, chosen))
        return self.session.expert

    def _more(self, view: RunView, layer: LayerView, expert: int, known: LoadSeries) -> list[Line]:
        columns, colour = self.room.width, not self.app.no_color
        across = expert_card.across_layers(view, expert, layer.index, columns, colour=colour)
        together = expert_card.comoving_line(known, expert, columns)
        return [across, expert_card.findings_line(view, layer, expert, columns), together]

    def _draw_charts(
        self, view: RunView, layer: LayerView, expert: int, known: LoadSeries, room: int
    ) -> None:
        charts = expert_card.expert_charts(view, layer, expert, known, self._why_nothing())
        layout = arranged([list(charts)], "load", (self.room.width - 1, max(4, room)))
        time = time_scale(view, self.session.axis, layer.index)
        step = view.counts_step or view.step
        self.show_stacks(
            layout,
            {
                place.name: self.draw_figure(charts[place.name], time, place, step)
                for stack in layout.stacks
                for place in stack
            },
        )

    def _why_nothing(self) -> str:
        if self._problem:
            return self._problem
        return "reading the log …" if self._asked is not None else "no counts in this window"

    def _known(self) -> LoadSeries:
        """The samples, if they are of this router of this log."""
        of, watch = self._of, self.session.watch
        if of is None or watch is None or of.watch is not watch:
            return _NOTHING
        same = (of.generation, of.router) == (watch.generation, self.session.selected)
        return self._series if same else _NOTHING

    def _ask_for_samples(self, view: RunView, columns: int) -> None:
        """Read the samples for the current view, unless they are read or being read."""
        watch = self.session.watch
        problem = self.session.time.why_no_past()
        if watch is None or problem:
            self._problem = f"history cannot be read: {problem}" if problem else ""
            return
        count = max(_LEAST_SAMPLES, min(_MOST_SAMPLES, columns))
        wanted = _Wanted(
            watch, watch.generation, watch.complete, self.session.selected, view.window, count
        )
        if any(one is not None and wanted.fits(one) for one in (self._of, self._asked)):
            return
        self._asked = wanted
        self.run_worker(self._read(wanted), group="samples", exclusive=True)

    async def _read(self, wanted: _Wanted) -> None:
        stop = threading.Event()
        problem, found = "", _NOTHING
        try:
            found = await asyncio.to_thread(_read_series, wanted, stop.is_set)
        except OSError as error:
            problem, found = f"history cannot be read: {error.strerror or error}", _NOTHING
        finally:
            stop.set()  # also after cancellation: another worker reads the current samples
        if self._asked is wanted:
            self._series, self._of, self._asked, self._problem = found, wanted, None, problem
            await self.redraw_if_current()

    async def action_expert(self, by: int) -> None:
        """Choose another expert."""
        if self.session.expert is not None:
            self.session.expert += by
        await self.redraw()


def _read_series(wanted: _Wanted, cancelled: Callable[[], bool]) -> LoadSeries:
    """Read from the disk and precompute what all experts share."""
    found = samples(wanted.watch, wanted.router, wanted.count, wanted.window, cancelled=cancelled)
    series = LoadSeries(found)
    _ = series.unit
    return series
