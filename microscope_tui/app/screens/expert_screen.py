"""The card of one expert: its load now, its history, and where else it has alerts.

A worker thread reads the history from the log; the previous one stays until then.
"""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from textual.binding import BindingType

from microscope_tui.app import keys
from microscope_tui.app.keys import key, pair
from microscope_tui.app.screens.chart_screens import MOST_POINTS, ChartScreen
from microscope_tui.lines import LoadSeries, expert_card, time_scale
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


class ExpertScreen(ChartScreen):
    """Left and right move to the neighbouring expert."""

    CSS = f"""
    {ChartScreen.CSS}
    #layer-title {{ height: 1; }}
    #facts {{ height: 2; }}
    .roomy #layer-title, .roomy #more {{ margin-top: 1; }}
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        keys.BACK,
        *pair(
            "expert",
            key("expert.previous", "left,h,up,k", "expert(-1)", "previous expert"),
            key("expert.next", "right,l,down,j", "expert(1)", "next expert"),
        ),
        *keys.TIME,
        *keys.OUT,
        *keys.EVERYWHERE,
    ]
    PARTS = (
        "header",
        "layer-title",
        "facts",
        ("charts", "chart-load", "chart-bias", "chart-place"),
        "more",
        "ribbon",
        "keys",
    )

    has_focus_key = False
    _series = _NOTHING
    _of: _Wanted | None = None
    """What the series was read for."""
    _asked: _Wanted | None = None
    _problem = ""

    def points(self) -> int:
        return MOST_POINTS

    async def draw(self, view: RunView, columns: int, rows: int) -> None:
        session, selected = self.session, self.session.selected
        if selected >= len(view.layers):
            return
        layer = view.layers[selected]
        expert = self._expert(layer)
        self._ask_for_samples(view, columns)
        known = self._known()
        moment = "" if session.time.following else self.moment(view)
        self.show("layer-title", [expert_card.title(view, layer, expert, moment, columns)])
        self.show("facts", expert_card.facts(view, layer, expert, known, columns))
        colour = not self.app.no_color
        more = [
            expert_card.across_layers(view, expert, layer.index, columns, colour=colour),
            expert_card.findings_line(view, layer, expert, columns),
            expert_card.comoving_line(known, expert, columns),
        ]
        self.show_part("more", more)
        charts = expert_card.expert_charts(layer, expert, known, self._why_nothing())
        room = max(4, self.rows_of_charts(rows, 5 + len(more), gaps=4))
        time = time_scale(view, session.axis, layer.index)
        self.draw_charts([list(charts)], charts, time, room, view.counts_step or view.step)

    def _expert(self, layer: LayerView) -> int:
        """The chosen expert; by default the one farthest from fair."""
        chosen, experts = self.session.expert, layer.router.num_experts
        if chosen is None:
            chosen = expert_card.most_remarkable(layer.load or ())
        self.session.expert = max(0, min(experts - 1, chosen))
        return self.session.expert

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
        router = self.session.selected
        wanted = _Wanted(watch, watch.generation, watch.complete, router, view.window, count)
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
            problem = f"history cannot be read: {error.strerror or error}"
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
