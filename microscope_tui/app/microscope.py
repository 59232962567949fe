"""The application: opens the session, shows the screens, restores the terminal."""

import asyncio
import gc
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import ClassVar

from textual.app import App, SystemCommand
from textual.binding import Binding
from textual.screen import Screen
from textual.theme import Theme

from microscope_tui.app import palette
from microscope_tui.app.keys import EVERYWHERE, name_of, screen_class, shown_key, with_keymap
from microscope_tui.app.screens.main_screen import MainScreen
from microscope_tui.app.session import Session

_FIRST_LOOK_S = 0.2
_FREEZE_S = 1.0
_SWITCH_S = 0.001  # a key must not wait five milliseconds for the reader, again and again
_THEME = Theme(
    name="microscope",
    primary=palette.ACCENT,
    secondary=palette.CURVE,
    accent=palette.ACCENT,
    foreground=palette.TEXT,
    background=palette.GROUND,
    surface="#151b22",
    panel="#1b2430",
    success=palette.OK,
    warning=palette.WARN,
    error=palette.CRITICAL,
    dark=True,
)
"""The colours of what Textual draws by itself (the command palette)."""


class Microscope(App[None]):
    CSS = f"""
    Screen, ModalScreen {{ background: {palette.GROUND}; overflow: hidden; }}
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
        self.register_theme(_THEME)
        self.theme = _THEME.name
        sys.setswitchinterval(_SWITCH_S)

    def get_default_screen(self) -> Screen[None]:
        """The main screen; it stays below the others for the whole session."""
        return MainScreen(self.session)

    async def on_mount(self) -> None:
        self.session.reader.first_look.wait(_FIRST_LOOK_S)
        self.set_timer(_FREEZE_S, _collect_from_now_on)
        # Without this a terminated process leaves the alternate screen on.
        for signal_ in (signal.SIGTERM, signal.SIGHUP):
            with suppress(ValueError, RuntimeError):  # tests run outside the main thread
                asyncio.get_running_loop().add_signal_handler(
                    signal_, partial(self.exit, return_code=128 + signal_)
                )

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """The command palette: one line per binding of the screen, with its keys at the end."""
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
        """Show a screen by name, or return to the main one; screens above it close."""
        before = self.shown
        if before == "help" and name != "runs":
            return
        while len(self.screen_stack) > 1:
            await self.pop_screen()
        if name not in ("main", before) and (self.session.has_run or name == "runs"):
            await self.push_screen(screen_class(name)(self.session))

    def action_help(self) -> None:
        if self.shown != "help":
            waits, keymap = self.screen.has_class("waiting"), self.session.preferences.keymap
            own = EVERYWHERE if waits else self.screen.BINDINGS
            bindings = with_keymap(own, keymap)
            behind = "" if waits else self.shown
            self.push_screen(screen_class("help")(bindings, self.session.glyphs, behind))

    def action_repaint(self) -> None:
        """After another program wrote over the screen."""
        self.screen.refresh(layout=True)


def _collect_from_now_on() -> None:
    gc.freeze()  # objects made so far live as long as the process
    gc.enable()
