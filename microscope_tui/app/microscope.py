"""The application: opens the session, shows the screens, restores the terminal."""

import asyncio
import gc
import signal
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import ClassVar

from rich.segment import Segment
from textual.app import App, SystemCommand
from textual.binding import Binding
from textual.color import Color
from textual.filter import LineFilter
from textual.screen import Screen
from textual.theme import Theme

from microscope_tui.diagnosis import NO_ROUTERS
from microscope_tui.draw.spans import shortened
from microscope_tui.kit.base import BaseScreen
from microscope_tui.kit.keys import EVERYWHERE, name_of, screen_class, shown_key, with_keymap
from microscope_tui.kit.palette import Shades
from microscope_tui.kit.rows import in_truecolor
from microscope_tui.kit.session import Session
from microscope_tui.screens.main.screen import MainScreen

_OF_ROUTERS = ("layer", "expert", "map", "compare", "placement")
_FIRST_LOOK_S = 0.2
_FREEZE_S = 1.0
_SWITCH_S = 0.001  # a key must not wait five milliseconds for the reader, again and again


class Microscope(App[None]):
    CSS = f"""
    Screen, ModalScreen {{ background: $background; overflow: hidden; }}
    Rows, Tiles {{ height: 1fr; width: 1fr; }}
    Tiles {{ overflow: hidden; }}
    #header, #ribbon, #keys {{ height: 1; }}
    .gone, .small > * {{ display: none; }}
    .small > #header {{ display: block; height: 1fr; }}
    #waiting, .waiting > * {{ display: none; }}
    .waiting > #waiting {{ display: block; }}
    {MainScreen.CSS}
    """
    """CSS of all screens, and of the default screen, whose own CSS Textual does not load."""
    TITLE = "MoE Microscope"

    BINDINGS: ClassVar = [Binding("ctrl+c", "quit", "quit", show=False, priority=True)]

    def __init__(self, session: Session) -> None:
        self.problem: str | None = None
        """What failed at exit."""
        self.session = session
        super().__init__()
        self.set_keymap(session.preferences.keymap)
        theme = _theme_of(session.shades, session.preferences.theme)
        self.register_theme(theme)
        self.theme = theme.name
        sys.setswitchinterval(_SWITCH_S)

    def get_line_filters(self) -> Sequence[LineFilter]:
        """Textual's for NO_COLOR sends greys, or codes for the default colours."""
        return [_NoColour()] if self.no_color else super().get_line_filters()

    def get_default_screen(self) -> Screen[None]:
        """The main screen; it stays below the others for the whole session."""
        return MainScreen(self.session)

    def on_load(self) -> None:
        """Before the terminal changes: from then on these signals restore it."""
        for signal_, code in ((signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)):
            with suppress(ValueError, RuntimeError):  # tests run outside the main thread
                asyncio.get_running_loop().add_signal_handler(
                    signal_, partial(self.exit, return_code=code)
                )

    async def on_mount(self) -> None:
        self.session.reader.first_look.wait(_FIRST_LOOK_S)
        self.set_timer(_FREEZE_S, _collect_from_now_on)

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """The command palette: a line per binding of the screen."""
        for binding in with_keymap(screen.BINDINGS, self.session.preferences.keymap):
            if binding.id == "app.palette":
                continue
            keys = "  ".join(shown_key(key) for key in binding.key.split(","))
            text = binding.tooltip or binding.description
            title = text if binding.description in text else f"{binding.description}: {text}"
            namespace = self if binding.action.startswith("app.") else screen
            run = partial(self.run_action, binding.action, namespace)
            yield SystemCommand(f"{title}   {keys}", "", run)

    def on_unmount(self) -> None:
        if self.session.preferences.remember and not self.session.fleet.piped:
            from microscope_tui.app.remembered import remember

            self.problem = remember(self.session)
        self.session.close()

    @property
    def shown(self) -> str:
        return name_of(self.screen)

    async def action_go(self, name: str) -> None:
        """Show a screen above the main one; others close."""
        before = self.shown
        if before == "help" and name != "runs":
            return
        while len(self.screen_stack) > 1:
            await self.pop_screen()
        run, main = self.session.run, self.screen
        if run is not None and not run.routers and name in _OF_ROUTERS:
            assert isinstance(main, MainScreen)
            main.show_message(NO_ROUTERS)
            return
        if name not in ("main", before) and (self.session.has_run or name == "runs"):
            await self.push_screen(screen_class(name)(self.session))

    async def action_write(self, kind: str) -> None:
        """Write what is shown into the working directory: ``csv``, ``json`` or ``svg``."""
        from microscope_tui.draw.export import view_csv, view_json  # only for this key
        from microscope_tui.kit import out, svg

        screen, session = self.screen, self.session
        view = session.view(1, 1)
        if view is None or not isinstance(screen, BaseScreen):
            return
        try:
            if kind == "svg":
                with in_truecolor(self):
                    lines = svg.lines_of(self)
                text = svg.svg_of(lines, self.size.width, session.shades)
            elif kind == "csv":
                text = view_csv(view)
            else:
                text = view_json(view)
            stem = f"{view.name}-{view.step}-{name_of(screen)}"
            path = out.free_name(Path.cwd(), stem, f".{kind}")
            await asyncio.to_thread(out.write_new, path, text)  # the disk may be slow
        except OSError as error:
            reason = error.strerror or error
            screen.show_message(
                f"cannot write here: {reason}; start moe-microscope in a folder you can write to"
            )
            return
        session.written.append(path)
        said = f"written: {path.name} in "
        room = max(8, screen.size.width - len(said) - 2)
        screen.show_message(said + shortened(str(path.parent), room), "ok")

    def action_help(self) -> None:
        session = self.session
        behind = self.screen
        if not isinstance(behind, BaseScreen):  # it is the help
            return
        look = session.glyphs, session.shades
        if behind.has_class("waiting"):  # there is no run to read
            bindings = with_keymap(EVERYWHERE, session.preferences.keymap)
            self.push_screen(screen_class("help")(bindings, *look))
        else:
            words = behind.WORDS, behind.READING
            self.push_screen(screen_class("help")(behind.bindings_shown, *look, *words))

    def action_repaint(self) -> None:
        """After another program wrote over the screen."""
        self.screen.refresh(layout=True)


class _NoColour(LineFilter):
    """Removes all colours; bold, reverse and underline stay."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        return list(Segment.remove_color(segments))


def _theme_of(shades: Shades, name: str) -> Theme:
    """The colours of what Textual draws by itself (the command palette)."""
    return Theme(
        name=f"microscope-{name}",
        primary=shades.word("accent"),
        accent=shades.word("accent"),
        foreground=shades.word("value"),
        background=shades.ground.true,
        surface=shades.surface,
        panel=shades.panel,
        dark=name == "dark",
        variables={"faint": shades.word("faint")},
    )


def _collect_from_now_on() -> None:
    gc.freeze()  # objects made so far live as long as the process
    gc.enable()
