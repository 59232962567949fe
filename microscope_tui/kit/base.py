"""The base of all screens: their parts, how they are drawn, and their last line.

A screen names its parts from top to bottom, draws them in ``draw``, and lists its keys. It is drawn
again by its ``Redraws``; what it asks in the last line are ``prompts``.
"""

import asyncio
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Union

from textual import containers, events
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.css.query import NoMatches
from textual.geometry import Size
from textual.screen import Screen
from textual.widget import Widget

from microscope_tui.diagnosis import Advice, Finding
from microscope_tui.draw import frame, time_line, words
from microscope_tui.draw.frame import MIN_COLUMNS, MIN_ROWS
from microscope_tui.draw.heat import Palette
from microscope_tui.draw.spans import Line, Span, pad
from microscope_tui.draw.table import first_visible
from microscope_tui.kit.key_line import last_line, playback_line
from microscope_tui.kit.keys import with_keymap
from microscope_tui.kit.prompts import Filter, GoTo, Prompt
from microscope_tui.kit.redraws import Redraws, room_of
from microscope_tui.kit.rows import Rows, Tiles
from microscope_tui.kit.session import Session
from microscope_tui.runlog import safe_text
from microscope_tui.watch import RunView

AIRY_FROM_ROWS = 30
"""Rows from which there are blank lines between the parts."""
Part = Union[str, tuple["Part", ...]]  # noqa: UP007  # a recursive name needs quotes


class BaseScreen(Screen[None]):
    """A screen of the session. A subclass names its ``PARTS``, and draws them in ``draw``."""

    SCOPED_CSS = False  # a scope would not reach the classes of the screen itself
    AUTO_FOCUS: ClassVar[str | None] = None
    BINDINGS: ClassVar[list[BindingType]] = []
    PARTS: ClassVar[Sequence[Part]] = ()
    """Ids of the rows above the keys; a tuple is the id of a container and its parts."""
    WIDGETS: ClassVar[Mapping[str, type[Rows | Tiles]]] = {}
    """Of the parts that are not ``Rows``."""
    PROMPTS: ClassVar[Mapping[str, type[Prompt]]] = {"place": GoTo, "filter": Filter}
    """What ``action_ask`` asks, by the name in the keys."""
    WORDS: ClassVar[Mapping[str, str]] = {}
    """What its help explains, main terms first; see ``glossary``."""
    READING: ClassVar[Sequence[str]] = (
        "a row is a layer: load per expert, balance c, token entropy, dropped share",
        "load: grey is fair, amber to coral overloaded, blue starving, × dead",
    )
    """How to read the screen, in sentences."""
    IN_DETAIL: ClassVar[bool] = False
    """Whether the view that ``draw`` gets has the curves of the chosen layer."""

    pattern = ""
    """The filter for layers, or that of a list."""
    first = 0
    """Index of the first row of a list that is in view."""
    list_rows = 10
    """Rows of a list that fit; one page."""
    message_shown = ""
    """Until the next key."""
    leads_to_probe = False
    """Whether the last line names the keys of the probe first."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self.prompt: Prompt | None = None
        """What the last line asks; ``None``: nothing."""
        self.bindings_shown = with_keymap(self.BINDINGS, session.preferences.keymap)
        """The keys of this screen as the config file changes them."""
        self.said: Line = []
        """What the last line shows in place of the keys; empty if it has these."""
        self._role = ""
        self._redraws = Redraws(self, session, self.redraw, self.state_now)

    def compose(self) -> ComposeResult:
        for part in (*self.PARTS, "keys"):
            yield _made(self, part)

    # When it is drawn

    async def on_mount(self) -> None:
        await self._redraws.begin()

    async def on_screen_resume(self) -> None:
        await self._redraws.resume()

    async def on_resize(self) -> None:
        await self._redraws.resize()

    def on_unmount(self) -> None:
        self._redraws.end()

    async def redraw(self) -> None:
        """Draw now, also if nothing changed; after a key that changed what is shown."""
        try:
            await self.draw_all()
        except NoMatches:  # at exit the parts of a screen are removed before the screen
            if self.app.is_running and self.is_attached and self.is_current:
                raise

    async def redraw_if_current(self) -> None:
        """A screen below another one redraws when it comes back."""
        if self.is_current:
            await self.redraw()

    def state_now(self) -> tuple[object, ...]:
        """Everything that a redraw depends on and that changes without a key."""
        session, watch = self.session, self.session.watch
        if watch is None:
            return ()
        seen = (watch, watch.life(), words.age(watch.state()[1]), tuple(session.fleet.critical))
        return session.fleet.open_version, session.reader.switches, session.pipe_ended, seen

    # What it draws

    async def draw_all(self) -> None:
        """Draw all parts; nothing while there is no run, or if the window is too small."""
        only = (self.session.selected,) if self.IN_DETAIL else ()
        view = self.session.view(self.points(), ribbon_columns(self), only)
        if view is None or not draw_header(self, view):
            return
        await self.draw(view, *self.room)
        if "ribbon" in self.PARTS:
            self.show("ribbon", [ribbon(self, view)])
        self.draw_last_line()

    async def draw(self, view: RunView, columns: int, rows: int) -> None:
        """All parts except the header, the ribbon and the last line."""

    def points(self) -> int:
        """Most columns of the curves in the view that ``draw`` gets."""
        return 1

    def plot_area(self) -> tuple[int, int] | None:
        """Cells left of the time axis, and cells of the axis, with which the ribbon is aligned.

        ``None``: the ribbon has a line of its own.
        """
        return None

    @property
    def room(self) -> Size:
        """In cells; of the terminal before the first layout."""
        return room_of(self)

    def show(
        self,
        part: str,
        lines: Sequence[Line],
        palette: Palette = Palette.DIVERGING,
        *,
        height: int | str | None = None,
        width: int | None = None,
    ) -> None:
        """Put lines into a part; only those that changed are sent.

        Args:
            part: its id.
            lines: each of the width of the part.
            palette: of heatmap cells.
            height: in lines, or as Textual takes it; 0 hides the part. By default it stays.
            width: in cells; by default it stays.
        """
        if not (self.is_attached and self.display):
            return  # it closes: its parts are not made yet, or removed already
        rows = self.query_one(f"#{part}", Rows)
        if height is not None:
            rows.set_class(not height, "gone")
            rows.styles.height = height or 1
        if width is not None:
            rows.styles.width = width
        rows.show(lines, palette)

    # The last line: a prompt, a message until the next key, or the keys

    def draw_last_line(self) -> None:
        """Show the prompt, else the message, else the keys."""
        keys = self.bindings_shown
        glyphs = self.session.glyphs
        time = self.session.time
        width = self.room.width
        self.said = []
        if self.prompt is not None:
            line = self.said = self.prompt.line()
        elif self.message_shown:
            line = self.said = [Span(f" {self.message_shown}", self._role)]
        elif time.speed:
            line = playback_line(keys, glyphs, time.speed, time.next_speed())
        else:
            paused = not time.following
            line = last_line(keys, glyphs, width, paused=paused, probed=self.leads_to_probe)
        self.show("keys", [pad(line, width)])

    def show_message(self, text: str | None, role: str = "warn") -> None:
        """Show ``text`` in the last line until the next key; ``None`` removes it."""
        self.message_shown, self._role = safe_text(text or "", 300), role
        if self.is_current:
            self.draw_last_line()

    async def from_disk(self, work: Callable[..., str | None], *arguments: object) -> None:
        """Run ``work`` in a thread, show the problem that it returns (``None``: there is none), and
        redraw.
        """
        self.show_message(await asyncio.to_thread(work, *arguments))
        await self.redraw()

    # Keys: an open prompt receives them before any binding does

    async def on_key(self, event: events.Key) -> None:
        self.session.reader.key_pressed()
        if self.message_shown:
            self.show_message(None)
        if self.prompt is not None:
            event.stop()
            await self.prompt.take(event.key, event.character)
            return
        for binding in self.bindings_shown:  # keys typed right after it belong to the prompt
            if event.key in binding.key.split(",") and binding.action.startswith("ask("):
                event.stop()
                await self.run_action(binding.action)

    async def on_paste(self, event: events.Paste) -> None:
        for character in event.text.strip():
            if self.prompt is not None and character.isprintable():
                await self.prompt.take(character, character)

    async def action_ask(self, what: str) -> None:
        await self.PROMPTS[what](self).begin()

    def in_view(self, at: int, count: int, visible: int) -> range:
        """Scroll a list so that ``at`` is in view; the indices that are."""
        self.list_rows = visible
        self.first = first_visible(visible, at, self.first, count)
        return range(self.first, min(count, self.first + visible))

    async def action_move(self, by: int) -> None:
        """Choose another layer, alert or run, ``by`` places further down."""

    async def action_page(self, direction: int) -> None:
        await self.action_move(direction * self.list_rows)

    def alert_to_copy(self, view: RunView) -> tuple[Finding, Advice] | None:
        """The one of which the key for copies takes the verdict; ``None`` for that of the run."""
        return None if view.log.error else view.worst

    async def action_copy(self) -> None:
        """The verdict, through the terminal (OSC 52)."""
        session, view = self.session, self.session.glance()
        if view is None:
            return
        from microscope_tui.kit import out  # only for this key

        text = out.verdict_text(view, self.alert_to_copy(view))
        self.app.copy_to_clipboard(text)
        hint = "; in tmux it needs `set -g set-clipboard on`" if session.in_tmux else ""
        self.show_message(f"copied: {text.splitlines()[0]}{hint}", "ok")


def _made(screen: BaseScreen, part: Part) -> Widget:
    """The widget of a part; a tuple becomes a container."""
    if isinstance(part, str):
        session = screen.session
        return screen.WIDGETS.get(part, Rows)(session.glyphs, session.shades, id=part)
    name, *inside = part
    return containers.Container(*(_made(screen, one) for one in inside), id=str(name))


def draw_header(screen: BaseScreen, view: RunView) -> bool:
    """Draw the header; false if the window is too small for more, and a line or two replace all."""
    columns, rows = screen.room
    small = columns < MIN_COLUMNS or rows < MIN_ROWS
    screen.set_class(small, "small")
    if small:
        screen.show("header", frame.smallest(view, columns, rows))
    else:
        others = list(screen.session.fleet.critical.values())
        screen.show("header", [frame.header(view, columns, screen.session.glyphs, others=others)])
    return not small


def ribbon_columns(screen: BaseScreen) -> int:
    """Columns of the time ribbon in the view that ``draw`` gets."""
    plot = screen.plot_area()
    return plot[1] if plot is not None else time_line.ribbon_width(screen.room.width)


def ribbon(screen: BaseScreen, view: RunView) -> Line:
    """The line of the whole run, below a plot with the columns of its time axis."""
    session = screen.session
    width = screen.room.width
    plot = screen.plot_area()
    if plot is not None:
        return time_line.aligned_ribbon(view, width, plot, session.axis)
    return time_line.ribbon(view, width, session.moment(view), session.axis)


def is_busy(screen: Screen[Any]) -> bool:
    """Whether a worker of the screen is at work."""
    return any(worker.node is screen and not worker.is_finished for worker in screen.workers)


class ListScreen(BaseScreen):
    """With a filter of its own; the chosen entry stays chosen when it moves."""

    at = 0
    _ids: Sequence[Hashable] = ()
    """Of the entries, in their order on the screen."""
    _chosen: Hashable = None
    """Id of the entry at the cursor; ``None`` before the first."""
    pattern = ""

    def keep_chosen(self, ids: Iterable[Hashable], start: int) -> None:
        """Move to where the chosen entry is now; at first to ``start``."""
        self._ids = list(ids)
        if self._chosen is None:
            self.at = start
        elif self._chosen in self._ids:
            self.at = self._ids.index(self._chosen)
        self._choose(self.at)

    def _choose(self, at: int) -> None:
        self.at = max(0, min(len(self._ids) - 1, at))
        if self._ids:
            self._chosen = self._ids[self.at]

    async def action_move(self, by: int) -> None:
        self._choose(self.at + by)
        await self.redraw()
