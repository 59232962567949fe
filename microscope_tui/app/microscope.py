"""The application: opens the session, shows the right screen, leaves the terminal as it was."""

import asyncio
import gc
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import ClassVar

from textual.app import App
from textual.binding import Binding
from textual.screen import Screen

from microscope_tui.app.keymap import Keymap, remapped
from microscope_tui.app.renderables.palette import GROUND
from microscope_tui.app.screens.help_screen import HelpScreen
from microscope_tui.app.screens.layer_screen import LayerScreen
from microscope_tui.app.screens.main_screen import MainScreen
from microscope_tui.app.screens.runs_screen import RunsScreen
from microscope_tui.app.screens.waiting_screen import WaitingScreen
from microscope_tui.app.session import Session
from microscope_tui.app.traffic import counting
from microscope_tui.report.glyphs import Glyphs
from microscope_tui.watch.fleet import Fleet

SCREENS: Mapping[str, Callable[[Session], Screen[None]]] = {
    "layer": LayerScreen,
    "runs": RunsScreen,
}
"""Screens that stand on top of the main one, by the names that ``action_go`` takes."""
NO_KEYS: Keymap = {}
_FIRST_LOOK_S = 0.2
_FREEZE_S = 1.0
_SWITCH_S = 0.001  # a key must not wait five milliseconds for the reader, again and again


class Microscope(App[None]):
    """MoE Microscope on one path."""

    CSS = f"""
    Screen, ModalScreen {{ background: {GROUND}; overflow: hidden; }}
    Rows, Tiles {{ height: 1fr; width: 1fr; }}
    Tiles {{ overflow: hidden; }}
    #header, #heads, #ribbon, #notes, #keys, #layer-title {{ height: 1; }}
    #verdict {{ height: 2; }}
    #evidence {{ height: 1; }}
    #table {{ overflow: hidden; }}
    .part {{ margin-left: 2; }}
    .roomy #verdict {{ height: 3; margin: 1 0; }}
    .roomy #ribbon {{ margin-top: 1; }}
    .small #verdict, .small #heads, .small #table, .small #ribbon, .small #notes, .small #keys
        {{ display: none; }}
    .small #header {{ height: 1fr; }}
    MainScreen #notes {{ display: none; }}
    MainScreen.noted #notes {{ display: block; }}
    #charts {{ grid-size: 2 2; grid-gutter: 1 2; padding: 1 1 0 1; height: 1fr; }}
    HelpScreen {{ align: center middle; background: {GROUND} 70%; }}
    #runs {{ height: 1fr; }}
    #help {{ border: round #3a424d; background: {GROUND}; }}
    """
    ENABLE_COMMAND_PALETTE = False
    TITLE = "MoE Microscope"

    BINDINGS: ClassVar = [Binding("ctrl+c", "quit", "quit", show=False, priority=True)]

    def __init__(
        self,
        fleet: Fleet,
        glyphs: Glyphs = Glyphs.BRAILLE,
        *,
        budget: int | None = None,
        keymap: Keymap = NO_KEYS,
    ) -> None:
        """The microscope on a fleet.

        Args:
            budget: bytes a second that may go to the terminal.
            keymap: keys of the user's own, by the ids of the bindings.
        """
        self.session = Session(fleet, glyphs, budget=budget, keymap=keymap)
        super().__init__(driver_class=counting(self.get_driver_class(), self.session.traffic))
        self.set_keymap(keymap)
        sys.setswitchinterval(_SWITCH_S)
        self.session.reader.start()  # reads while Textual still sets up the terminal

    def get_default_screen(self) -> Screen[None]:
        """The main screen; it stays below the others for the whole sitting."""
        return MainScreen(self.session)

    async def on_mount(self) -> None:
        self.session.reader.first_look.wait(_FIRST_LOOK_S)
        if not self.session.has_run:
            await self.push_screen(WaitingScreen(self.session))
        self.set_interval(0.25, self._move_on)
        # What is there by then stays for the whole sitting: no collection need walk over it.
        self.set_timer(_FREEZE_S, gc.freeze)
        # Without this a terminated microscope leaves the alternate screen on.
        for signal_ in (signal.SIGTERM, signal.SIGHUP):
            with suppress(ValueError, RuntimeError):  # not in the main thread: under test
                asyncio.get_running_loop().add_signal_handler(
                    signal_, partial(self.exit, return_code=128 + signal_)
                )

    def on_unmount(self) -> None:
        self.session.reader.stop()

    async def _move_on(self) -> None:
        """From waiting to the run as soon as there is one, and back from a run without a step."""
        if isinstance(self.screen, WaitingScreen):
            if self.session.has_run:
                await self.pop_screen()
            else:
                self.screen.redraw()
        elif isinstance(self.screen, MainScreen) and self.session.is_blank:
            await self.push_screen(WaitingScreen(self.session))

    async def action_go(self, name: str) -> None:
        """Show a screen by its name, or the main one again; what was opened before is closed."""
        wanted = SCREENS.get(name)
        if isinstance(self.screen, HelpScreen | WaitingScreen) and name != "runs":
            return
        again = wanted is not None and type(self.screen) is wanted
        while len(self.screen_stack) > 1 and not isinstance(self.screen, WaitingScreen):
            await self.pop_screen()
        if wanted is not None and not again:
            await self.push_screen(wanted(self.session))

    def action_help(self) -> None:
        """Show the keys of the present screen."""
        if isinstance(self.screen, HelpScreen):
            return
        bindings = [b for b in self.screen.BINDINGS if isinstance(b, Binding)]
        bindings = remapped(bindings, self.session.keymap)
        self.push_screen(HelpScreen(bindings, self.session.glyphs))

    def action_repaint(self) -> None:
        """Paint everything again, after another program wrote over the screen."""
        self.screen.refresh(layout=True)
