"""One expert of a layer over time."""

import asyncio
import threading
from typing import ClassVar

from microscope_tui.draw.time_line import time_scale
from microscope_tui.kit import keys
from microscope_tui.kit.chart_screen import MOST_POINTS, ChartScreen
from microscope_tui.kit.glossary import BIAS, CONDITIONS, HEADER, LAYERS, TIME
from microscope_tui.kit.keys import key, pair
from microscope_tui.screens.expert import text as expert_card
from microscope_tui.screens.expert.text import LoadSeries
from microscope_tui.watch import RunView, RunWatch, samples

_LEAST_SAMPLES, _MOST_SAMPLES = 48, 160

_NOTHING = LoadSeries(())
_COARSE = 32  # parts of a window: one whose ends stay in their parts keeps its samples


_EXPERT = {
    "place": "of the experts of this layer by load: 1 is the busiest",
    "findings": "alerts that name this expert",
    "steps sampled": "steps read again from the log for these curves",
}


class ExpertScreen(ChartScreen):
    """A worker thread reads the history from the log; the previous one stays until then."""

    CSS = f"""
    {ChartScreen.CSS}
    #layer-title, #more {{ height: 1; }}
    #facts {{ height: 2; }}
    .roomy #layer-title, .roomy #more {{ margin-top: 1; }}
    """
    WORDS: ClassVar = {**_EXPERT, **CONDITIONS, **LAYERS, **BIAS, **HEADER, **TIME}
    BINDINGS: ClassVar = [
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
        *("header", "layer-title", "facts"),
        ("charts", "chart-load", "chart-bias"),
        *("more", "ribbon"),
    )

    chart_in_focus = ""  # no key moves it
    _series = _NOTHING
    _of: tuple[object, ...] = ()
    """What the series belongs to: the router, its log, the window."""
    _asked: tuple[object, ...] = ()
    _problem = ""

    def points(self) -> int:
        return MOST_POINTS

    async def draw(self, view: RunView, columns: int, rows: int) -> None:
        session, selected = self.session, self.session.selected
        if selected >= len(view.layers):
            return
        layer = view.layers[selected]
        chosen, experts = session.expert, layer.router.num_experts
        if chosen is None:
            chosen = expert_card.first_expert(view, layer)
        expert = session.expert = max(0, min(experts - 1, chosen))
        self._ask_for_samples(view, columns)
        known = self._known()
        moment = session.unless_live(view)
        self.show("layer-title", [expert_card.title(layer, expert, moment, columns)])
        self.show("facts", expert_card.facts(view, layer, expert, columns))
        self.show("more", [expert_card.findings_line(view, layer, expert, columns)])
        why = "reading the log …" if self._asked else "no counts in this window"
        charts = expert_card.expert_charts(layer, expert, known, self._problem or why)
        room = max(4, self.rows_of_charts(rows, 6, gaps=4))
        time = time_scale(view, session.axis, layer.index)
        self.draw_charts([list(charts)], charts, time, room, view.counts_step or view.step)

    def _known(self) -> LoadSeries:
        if self._of[:3] == self._router():
            return self._series
        return _NOTHING

    def _router(self) -> tuple[object, ...]:
        watch = self.session.watch
        return watch, watch and watch.generation, self.session.selected

    def _ask_for_samples(self, view: RunView, columns: int) -> None:
        watch, problem = self.session.watch, self.session.time.why_no_past()
        if problem:
            self._problem = f"history cannot be read: {problem}"
        if watch is None or problem:
            return
        count = max(_LEAST_SAMPLES, min(_MOST_SAMPLES, columns))
        first, last = view.window
        bits = max(1, (last - first) // _COARSE).bit_length() - 1
        wanted = (*self._router(), watch.complete, first >> bits, last >> bits, bits, count)
        if wanted == self._of:
            self._asked = ()  # what is being read is for a window of another size
        elif wanted != self._asked:
            self._asked = wanted
            self.run_worker(self._read(wanted, watch, view, count), group="samples", exclusive=True)

    async def _read(
        self, wanted: tuple[object, ...], watch: RunWatch, view: RunView, count: int
    ) -> None:
        stop, router = threading.Event(), self.session.selected
        problem = ""
        found = _NOTHING

        def read() -> LoadSeries:
            return LoadSeries(samples(watch, router, count, view.window, cancelled=stop.is_set))

        try:
            found = await asyncio.to_thread(read)
        except OSError as error:
            problem = f"history cannot be read: {error.strerror or error}"
        finally:
            stop.set()  # also after cancellation: another worker reads the current samples
        if self._asked == wanted:
            self._series, self._of, self._asked, self._problem = found, wanted, (), problem
            await self.redraw_if_current()

    async def action_expert(self, by: int) -> None:
        if self.session.expert is not None:
            self.session.expert += by
        await self.redraw()
