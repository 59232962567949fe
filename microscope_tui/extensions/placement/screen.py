"""The page "placement": where the experts of a layer are, where they would be better."""

import asyncio
from typing import ClassVar

from textual.worker import get_current_worker

from microscope_tui.draw.heat import Heat
from microscope_tui.draw.spans import Span, wrap
from microscope_tui.extensions.placement.study import BadWindow, Request, Study, study
from microscope_tui.extensions.placement.text import placement_lines, repair_first
from microscope_tui.kit import keys
from microscope_tui.kit.glossary import CELLS, HEADER
from microscope_tui.kit.run_screen import RunScreen
from microscope_tui.runlog import UnknownFormat, safe_text
from microscope_tui.watch import RunView, RunWatch
from microscope_tui.watch.cluster import BadCluster
from microscope_tui.watch.counted import NoCounts, read_counts

_OTHER_ROWS = 2  # header and keys
_ONE_RANK = "One rank holds all experts: --ranks R shows this page for R ranks."
_REFUSED = (BadCluster, BadWindow, NoCounts, UnknownFormat, OSError)


_PLACEMENT = {
    "balancedness": "mean load of the ranks ÷ that of the busiest, step by step: 1 is even",
    "today, refined": "neighbouring experts on one rank, as engines place them; the computed "
    "placement",
    "load": "of a rank ÷ the mean of the ranks; in the cells of an expert ÷ the fair share",
    "gain, pays": "balancedness on later steps less that of today; it is at least 0.01 and "
    "beyond chance",
    "ageing, refit": "the lost time won back, by steps since the fit; when a tenth of it is gone",
}


class PlacementScreen(RunScreen):
    """A worker thread reads the log and fits, once for each state of the log."""

    WORDS: ClassVar = {**_PLACEMENT, **CELLS, **HEADER}
    BINDINGS: ClassVar = [keys.BACK, *keys.LAYERS, *keys.OUT, *keys.EVERYWHERE]
    PARTS = ("header", "placement")
    _of: tuple[object, ...] = ()
    _found: Study | str = ""

    def state_now(self) -> tuple[object, ...]:
        return *super().state_now(), self._found

    async def draw(self, view: RunView, columns: int, rows: int) -> None:
        session, watch = self.session, self.session.watch
        assert watch is not None  # there is a view of it
        ranks = session.preferences.cost.ranks or (view.run.expert_parallel_size if view.run else 1)
        if (wanted := (watch, watch.generation, watch.complete)) != self._of:
            problem = _ONE_RANK if ranks < 2 else session.fleet.piped and session.time.why_no_past()
            self._of, self._found = wanted, problem or "reading the log …"
            self.run_worker(self._read(watch, 0 if problem else ranks), exclusive=True)
        if isinstance(found := self._found, str):
            lines = [[Span(f"  {text}")] for text in wrap(found, columns - 3)]
        else:
            router = view.layers[session.selected].router
            heat = Heat(colour=not self.app.no_color, glyphs=session.glyphs)
            size = columns, rows - _OTHER_ROWS
            lines = placement_lines(found, router, size, heat, repair_first(view.alerts))
        self.show("placement", lines, session.look.palette)

    async def _read(self, watch: RunWatch, ranks: int) -> None:
        if watch.complete and ranks > 1:
            self._found = await asyncio.to_thread(self._fitted, watch, ranks)
            await self.redraw_if_current()

    def _fitted(self, watch: RunWatch, ranks: int) -> Study | str:
        worker = get_current_worker()

        def progress(share: float) -> None:
            if worker.is_cancelled:
                raise InterruptedError
            self._found = f"reading and fitting … {share:.0%}"

        try:
            counts = read_counts(watch.file, lambda share: progress(share / 2))
            request = Request(ranks=ranks)
            found = study(counts, request, None, lambda share: progress((1 + share) / 2))
        except _REFUSED as error:
            return safe_text(getattr(error, "strerror", None) or error, 300)
        for layer in counts.layers:
            del layer.counts[:]  # 60 MB of a large model
        return found
