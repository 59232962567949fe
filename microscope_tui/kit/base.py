"""The base of all screens: parts, redraws, the last line, the prompt, copies and exports.

A screen names its parts from top to bottom, draws them in ``draw``, and lists its keys. A prompt
with a screen of its own would lose keys that are typed fast to the screen below.
"""

import asyncio
from collections.abc import Callable, Container, Hashable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from typing import ClassVar, Literal, Union

from textual import containers, events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.css.query import NoMatches
from textual.geometry import Size
from textual.screen import Screen
from textual.widget import Widget

from microscope_tui.draw import frame, time_line, words
from microscope_tui.draw.frame import MIN_COLUMNS, MIN_ROWS
from microscope_tui.draw.glyphs import Glyphs
from microscope_tui.draw.heat import Palette
from microscope_tui.draw.spans import Line, Span, pad, shortened
from microscope_tui.draw.table import first_visible
from microscope_tui.kit.key_line import last_line, playback_line, said
from microscope_tui.kit.keys import name_of, with_keymap
from microscope_tui.kit.rows import Rows, in_truecolor
from microscope_tui.kit.session import Session
from microscope_tui.runlog import safe_text
from microscope_tui.watch import RunView

AIRY_FROM_ROWS = 30
"""Rows from which there are blank lines between the parts."""
_WAITING_S = 0.25
_SOON_S = 0.05  # the end of reading and judging is shown at once
Kind = Literal["", "place", "filter", "copy", "token", "find", "k"]

COPY_CHOICES = {"v": "verdict", "r": "row", "x": "value"}
_MOST_CHARACTERS = 100
_LABELS: Mapping[Kind, str] = {"place": "go to step", "token": "go to token"}
Part = Union[str, tuple["Part", ...]]  # noqa: UP007  # a recursive name needs quotes


class Prompt:
    """The text that is typed in the last line, and what it is for."""

    def __init__(self) -> None:
        self.kind: Kind = ""
        """What the prompt is for; empty while it is closed."""
        self.typed = ""

    def take(self, key: str, character: str | None) -> str | None:
        """Take a key; the text on enter, or the choice of what to copy. ``None`` otherwise.

        Escape closes; ``kind`` is empty once it is closed.
        """
        if self.kind == "copy":
            self.kind = ""
            return character if character in COPY_CHOICES else None
        if key == "backspace":
            self.typed = self.typed[:-1]
        elif key == "ctrl+u":
            self.typed = ""
        elif key in ("enter", "escape"):
            self.kind = ""
            return self.typed if key == "enter" else None
        elif self.kind == "k" and not key.isdecimal():
            return None
        elif character is not None and character.isprintable():
            self.typed = (self.typed + character)[:_MOST_CHARACTERS]
        return None

    def line(self, hint: str, problem: str | None, glyphs: Glyphs) -> Line:
        """``problem`` replaces the hint."""
        label = Span(f" {_LABELS.get(self.kind, self.kind)} ", "accent")
        if self.kind == "copy":
            choices = [(f"  {key}", f" {what}") for key, what in COPY_CHOICES.items()]
            return [label, *said([*choices, ("   esc", " cancel")])]
        cursor = Span("_" if glyphs is Glyphs.ASCII else "▏", "accent")
        typed: Line = [label, Span(self.typed, "title"), cursor]
        if problem:
            return [*typed, Span(f"   {problem}", "warn")]
        does, leaves = ("keep", "all") if self.kind == "filter" else ("go", "stay")
        keys = [("enter", f" {does}   "), ("esc", f" {leaves}")]
        return [*typed, Span(f"   {hint}   ", "dim"), *said(keys)]


class BaseScreen(Screen[None]):
    """Redraws when the session has changed; an unchanged session costs nothing.

    A subclass names its ``PARTS``, and draws them in ``draw``; ``points`` and ``layers_in_detail``
    limit what has to be computed for it.
    """

    SCOPED_CSS = False  # a scope would not reach the classes of the screen itself
    AUTO_FOCUS: ClassVar[str | None] = None
    BINDINGS: ClassVar[list[BindingType]] = []
    PARTS: ClassVar[Sequence[Part]] = ()
    """Ids of the rows above the keys; a tuple is the id of a container and its parts."""

    first = 0
    """Index of the first row of a list that is in view."""
    list_rows = 10
    """Rows of a list that fit; one page."""

    message_shown = ""
    """Until the next key."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self.session = session
        self.prompt = Prompt()
        self._shown: tuple[object, ...] = ()
        self._stage: object = None  # whether the run was read and judged in the last picture
        self._due = 0.0
        self._role = ""
        self._unsent = ExitStack()  # paints of a new screen are held back
        self._new = True
        self._drawn_in = Size()

    def compose(self) -> ComposeResult:
        yield from map(self.made, (*self.PARTS, "keys"))

    def made(self, part: Part) -> Widget:
        """The widget of a part; a tuple becomes a container."""
        if isinstance(part, str):
            return Rows(self.session.glyphs, self.session.shades, id=part)
        name, *inside = part
        return containers.Container(*map(self.made, inside), id=str(name))

    async def on_mount(self) -> None:
        # Textual paints a new screen three times: laid out, resumed, and laid out again without
        # the toasts that it might have shown. Only the final state is sent.
        self._unsent.enter_context(self.app.batch_update())
        # Before the first layout: every paint of the whole screen that is saved is 50 KB.
        self._drawn_in = self.room
        await self.redraw()
        self._look_again()

    async def on_screen_resume(self) -> None:
        if not self._new:
            await self.redraw()
        self.call_later(self.call_later, self._send)  # after the events of the first layout

    def on_unmount(self) -> None:
        self._unsent.close()  # otherwise nothing would be sent again

    def _send(self) -> None:
        if self._new:
            self._new = False
            self._unsent.close()
            self.refresh(layout=True)
            self.call_after_refresh(self.session.reader.painted.set)

    async def on_resize(self) -> None:
        if not self._new or self.room != self._drawn_in:
            await self.redraw()

    async def redraw(self) -> None:
        """Draw now, also if nothing changed; after a key that changed what is shown."""
        try:
            await self.draw_all()
        except NoMatches:  # at exit the parts of a screen are removed before the screen
            if self.is_attached and self.is_current:
                raise

    async def draw_all(self) -> None:
        """Draw all parts; nothing while there is no run, or if the window is too small."""
        columns, rows = self.room
        view = self.session.view(self.points(), self.ribbon_columns(), self.layers_in_detail())
        if view is None or self.draw_small(view):
            return
        self.draw_header(view)
        await self.draw(view, columns, rows)
        if "ribbon" in self.PARTS:
            self.show("ribbon", [self.ribbon(view)])
        self.draw_last_line()

    def draw_header(self, view: RunView) -> None:
        others = list(self.session.fleet.critical.values())
        line = frame.header(view, self.room.width, self.session.glyphs, others=others)
        self.show("header", [line])

    def points(self) -> int:
        """Most columns of the curves in the view that ``draw`` gets."""
        return 1

    def layers_in_detail(self) -> Container[int]:
        """Indices of the layers of which this view has curves; by default none."""
        return range(0)

    async def draw(self, view: RunView, columns: int, rows: int) -> None:
        """All parts except the header, the ribbon and the last line."""

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

    def flag(self, **classes: bool) -> None:
        """Set or remove CSS classes of the screen."""
        for name, on in classes.items():
            self.set_class(on, name)

    def in_view(self, at: int, count: int, visible: int) -> range:
        """Scroll a list so that ``at`` is in view; the indices that are."""
        self.list_rows = visible
        self.first = first_visible(visible, at, self.first, count)
        return range(self.first, min(count, self.first + visible))

    async def redraw_if_current(self) -> None:
        """A screen below another one redraws when it comes back."""
        if self.is_current:
            await self.redraw()

    @property
    def busy(self) -> bool:
        """Whether a worker of this screen is at work."""
        return any(worker.node is self and not worker.is_finished for worker in self.workers)

    def _look_again(self) -> None:
        interval_s, watch = self.session.preferences.interval_s, self.session.watch
        if watch is not None and watch.unread and watch.judged < 1.0:
            interval_s = _SOON_S
        self.set_timer(interval_s if self.session.has_run else _WAITING_S, self._look)

    async def _look(self) -> None:
        now, watch = self.state_now(), self.session.watch
        stage = watch and (watch.complete, watch.judged >= 1.0)
        due = stage != self._stage or monotonic() >= self._due
        if due and now != self._shown and self.app.screen is self:
            self._shown, self._stage = now, stage
            self._due = monotonic() + self.session.preferences.interval_s
            self.session.reader.pause()
            await self.redraw()
            if self.session.has_new_critical():
                self.app.bell()
        self._look_again()

    def state_now(self) -> tuple[object, ...]:
        """Everything that a redraw depends on and that changes without a key."""
        session, watch = self.session, self.session.watch
        if watch is None:
            return ()
        seen = (watch, watch.life(), words.age(watch.state()[1]), tuple(session.fleet.critical))
        return session.fleet.open_version, session.reader.switches, session.pipe_ended, seen

    @property
    def bindings_shown(self) -> Sequence[Binding]:
        """The keys of this screen as the config file changes them."""
        return with_keymap(self.BINDINGS, self.session.preferences.keymap)

    leads_to_probe = False
    """Whether the last line names the keys of the probe first."""

    def draw_last_line(self) -> None:
        """The prompt while it is open, else the message until the next key, else the keys."""
        glyphs = self.session.glyphs
        width = self.room.width
        time = self.session.time
        if self.prompt.kind:
            hint, problem = self.prompt_hint()
            line = self.prompt.line(hint, problem, glyphs)
        elif self.message_shown:
            line = [Span(f" {self.message_shown}", self._role)]
        elif time.speed:
            line = playback_line(self.bindings_shown, glyphs, time.speed, time.next_speed())
        else:
            paused, probed = not time.following, self.leads_to_probe
            line = last_line(self.bindings_shown, glyphs, width, paused=paused, probed=probed)
        self.show("keys", [pad(line, width)])
        self.said = line if self.prompt.kind or self.message_shown else []

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

    def moment(self, view: RunView) -> str:
        """What is shown, in words: the state while following, else that it is paused or played
        back.
        """
        time = self.session.time
        if time.following:
            ended = self.session.pipe_ended and not view.state.ended
            return "pipe ended" if ended else view.life.word
        behind = f", now {view.newest_step:,}" if view.newest_step > view.step else ""
        return f"{f'PLAYING {time.speed}x' if time.speed else 'PAUSED'}{behind}"

    @property
    def room(self) -> Size:
        """In cells; of the terminal before the first layout."""
        return self.size or self.app.size

    def ribbon_columns(self) -> int:
        """Columns of the time ribbon in the view that ``draw`` gets."""
        return time_line.ribbon_width(self.room.width)

    def ribbon(self, view: RunView) -> Line:
        return time_line.ribbon(view, self.room.width, self.moment(view), self.session.axis)

    def draw_small(self, view: RunView) -> bool:
        """True if the window is too small for the screen: then ``frame.smallest`` has replaced
        it.
        """
        columns, rows = self.room
        small = columns < MIN_COLUMNS or rows < MIN_ROWS
        self.set_class(small, "small")
        if small:
            self.show("header", frame.smallest(view, columns, rows))
        return small

    async def action_move(self, by: int) -> None:
        """Choose another layer, alert or run, ``by`` places further down."""

    async def action_page(self, direction: int) -> None:
        await self.action_move(direction * self.list_rows)

    # The prompt receives keys before any binding does.

    async def action_ask(self, kind: Kind) -> None:
        if kind == "k" and not self.session.lacks_top_k:
            await self.answered(kind, "0")
        elif self.session.has_run or kind == "k":
            self.prompt.kind = kind
            self.prompt.typed = self.pattern if kind == "filter" else ""
            self.draw_last_line()

    async def on_key(self, event: events.Key) -> None:
        self.session.reader.key_pressed()
        if self.message_shown:
            self.show_message(None)
        if self.prompt.kind:
            event.stop()
            await self._type(event.key, event.character)
            return
        for binding in self.bindings_shown:  # keys typed right after it belong to the prompt
            if event.key in binding.key.split(",") and binding.action.startswith("ask("):
                event.stop()
                await self.run_action(binding.action)

    async def on_paste(self, event: events.Paste) -> None:
        if self.prompt.kind:
            for character in event.text.strip():
                if character.isprintable():
                    await self._type(character, character)

    async def _type(self, key: str, character: str | None) -> None:
        kind = self.prompt.kind
        entered = self.prompt.take(key, character)
        self.draw_last_line()
        if kind == "filter":  # applied while typing; esc clears it
            gone = not self.prompt.kind and entered is None
            self.pattern = "" if gone else self.prompt.typed
            await self.redraw()
        elif kind == "copy" and entered:
            self.copy(COPY_CHOICES[entered])
        elif kind == "place" and entered:
            await self.from_disk(self.session.time.go, entered)
        elif entered:
            await self.answered(kind, entered)

    def prompt_hint(self) -> tuple[str, str | None]:
        """What can be typed, and why it cannot be used now (``None``: it can)."""
        if self.prompt.kind == "place":
            time = self.session.time
            return f"1 to {time.newest_step:,}, 50%, -100, 14:30, -2h", time.why_no_past()
        if self.prompt.kind == "filter":
            return "text, !text, L1*", None
        if self.prompt.kind == "k":
            return "experts per token? 0: unknown", None
        return "", None

    async def answered(self, kind: Kind, text: str) -> None:
        """Of a prompt that only some screens have: ``text`` was entered."""

    @property
    def pattern(self) -> str:
        """The filter for layers, or that of a list."""
        return self.session.filter

    @pattern.setter
    def pattern(self, pattern: str) -> None:
        self.session.filter = pattern

    def filter_note(self, cells: int = 40) -> str:
        """The filter for a title, cut to so many cells; empty without one."""
        return f"/{safe_text(self.pattern, cells)}" if self.pattern else ""

    async def action_match(self, by: int) -> None:
        if not self.pattern:
            self.show_message("no filter: / sets one", "dim")
            return
        await self.action_move(by)

    # Copies go through the terminal (OSC 52), exports into the working directory.

    async def action_write(self, what: str) -> None:
        from microscope_tui.draw.export import view_csv, view_json
        from microscope_tui.kit import out, svg  # only for this key

        view = self.session.view(1, 1)
        if view is None:
            return
        try:
            if what == "svg":
                with in_truecolor(self.app):
                    lines = svg.lines_of(self.app)
                text = svg.svg_of(lines, self.app.size.width, self.session.shades)
            else:
                text = view_csv(view) if what == "csv" else view_json(view)
            path = out.free_name(Path.cwd(), f"{view.name}-{view.step}-{name_of(self)}", f".{what}")
            await asyncio.to_thread(out.write_new, path, text)  # the disk may be slow
        except OSError as error:
            reason = error.strerror or error
            self.show_message(
                f"cannot write here: {reason}; start moe-microscope in a folder you can write to"
            )
        else:
            self.session.written.append(path)
            said = f"written: {path.name} in "
            room = max(8, self.size.width - len(said) - 2)
            self.show_message(said + shortened(str(path.parent), room), "ok")

    def copy(self, what: str) -> None:
        """Copy what ``COPY_CHOICES`` names, of the chosen layer."""
        from microscope_tui.kit import out  # only for this key

        session, view = self.session, self.session.glance()
        if view is None or session.selected >= len(view.layers):
            return
        layer = view.layers[session.selected]
        text = {
            "verdict": lambda: out.verdict_text(view),
            "row": lambda: out.row_text(layer, view),
            "value": lambda: out.value_text(layer, session.expert),
        }[what]()
        if not text:
            self.show_message("no such value at this step")
            return
        self.put_in_clipboard(text, text.splitlines()[0])

    def put_in_clipboard(self, text: str, said: str) -> None:
        """Through the terminal; ``said``: what the message names."""
        self.app.copy_to_clipboard(text)
        hint = "; in tmux it needs `set -g set-clipboard on`" if self.session.in_tmux else ""
        self.show_message(f"copied: {said}{hint}", "ok")


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
