"""The application: opens the session, shows the screens, restores the terminal."""

import asyncio
import gc
import signal
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from pkgutil import resolve_name
from typing import ClassVar

from textual.app import App, SystemCommand
from textual.binding import Binding
from textual.screen import Screen
from textual.theme import Theme

from microscope_tui.app.keymap import bindings_of, shown_key
from microscope_tui.app.memory import recall, remember
from microscope_tui.app.preferences import Preferences
from microscope_tui.app.renderables import palette
from microscope_tui.app.screens.help_screen import HelpScreen
from microscope_tui.app.screens.main_screen import MainScreen
from microscope_tui.app.screens.waiting_screen import WaitingScreen
from microscope_tui.app.session import NO_PREFERENCES, Session
from microscope_tui.lines import Glyphs
from microscope_tui.watch import Fleet

_FOLDER = "microscope_tui.app.screens"
SCREENS = {
    "alerts": f"{_FOLDER}.alerts_screen:AlertsScreen",
    "compare": f"{_FOLDER}.compare_screen:CompareScreen",
    "course": f"{_FOLDER}.course_screen:CourseScreen",
    "expert": f"{_FOLDER}.expert_screen:ExpertScreen",
    "layer": f"{_FOLDER}.layer_screen:LayerScreen",
    "mismatch": f"{_FOLDER}.mismatch_screen:MismatchScreen",
    "runs": f"{_FOLDER}.runs_screen:RunsScreen",
    "slices": f"{_FOLDER}.slices_screen:SlicesScreen",
    "tokens": f"{_FOLDER}.tokens_screen:TokensScreen",
}
"""Screens on top of the main one, by the names that ``action_go`` takes: imported when opened."""
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
    """MoE Microscope on one path."""

    CSS = f"""
    Screen, ModalScreen {{ background: {palette.GROUND}; overflow: hidden; }}
    Rows, Tiles {{ height: 1fr; width: 1fr; }}
    Tiles {{ overflow: hidden; }}
    #header, #ribbon, #keys {{ height: 1; }}
    .gone, .small > * {{ display: none; }}
    .small > #header {{ display: block; height: 1fr; }}
    {MainScreen.CSS}
    """
    """CSS of all screens, and of the default screen, whose own CSS Textual does not load."""
    TITLE = "MoE Microscope"

    BINDINGS: ClassVar = [Binding("ctrl+c", "quit", "quit", show=False, priority=True)]

    def __init__(
        self,
        fleet: Fleet,
        glyphs: Glyphs = Glyphs.BRAILLE,
        preferences: Preferences = NO_PREFERENCES,
    ) -> None:
        self.problem: str | None = None
        """What failed at exit."""
        self.session = Session(fleet, glyphs, preferences)
        if preferences.remember:
            recall(self.session)
        super().__init__()
        self.set_keymap(preferences.keymap)
        self.register_theme(_THEME)
        self.theme = _THEME.name
        sys.setswitchinterval(_SWITCH_S)
        self.session.reader.start()  # starts reading while Textual sets up the terminal

    def get_default_screen(self) -> Screen[None]:
        """The main screen; it stays below the others for the whole session."""
        return MainScreen(self.session)

    async def on_mount(self) -> None:
        self.session.reader.first_look.wait(_FIRST_LOOK_S)
        if not self.session.has_run:
            await self.push_screen(WaitingScreen(self.session))
        self.set_interval(0.25, self._move_on)
        # Objects made so far live as long as the process: garbage collection can skip them.
        self.set_timer(_FREEZE_S, gc.freeze)
        # Without this a terminated process leaves the alternate screen on.
        for signal_ in (signal.SIGTERM, signal.SIGHUP):
            with suppress(ValueError, RuntimeError):  # tests run outside the main thread
                asyncio.get_running_loop().add_signal_handler(
                    signal_, partial(self.exit, return_code=128 + signal_)
                )

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """The commands of the palette: the bindings of the current screen."""
        return commands_of(self, screen, bindings_of(screen, self.session.keymap))

    def on_unmount(self) -> None:
        if self.session.preferences.remember and not self.session.fleet.piped:
            self.problem = remember(self.session)
        self.session.anatomy.close()
        self.session.reader.stop()

    async def _move_on(self) -> None:
        """Switch from the waiting screen to the run once it has a step, and back."""
        if not self.screen_stack:  # exiting
            return
        if isinstance(self.screen, WaitingScreen):
            if self.session.has_run:
                await self.pop_screen()
            else:
                self.screen.redraw()
        elif isinstance(self.screen, MainScreen) and self.session.is_blank:
            await self.push_screen(WaitingScreen(self.session))

    async def action_go(self, name: str) -> None:
        """Show a screen by name, or return to the main one; screens above it close."""
        wanted = resolve_name(SCREENS[name]) if name in SCREENS else None
        if isinstance(self.screen, HelpScreen | WaitingScreen) and name != "runs":
            return
        again = wanted is not None and type(self.screen) is wanted
        while len(self.screen_stack) > 1 and not isinstance(self.screen, WaitingScreen):
            await self.pop_screen()
        if isinstance(self.screen, WaitingScreen) and name != "runs":
            return  # there is no run to show
        if wanted is not None and not again:
            await self.push_screen(wanted(self.session))

    def action_help(self) -> None:
        """Show the keys and words of the current screen."""
        if isinstance(self.screen, HelpScreen):
            return
        bindings = bindings_of(self.screen, self.session.keymap)
        behind = type(self.screen).__name__.removesuffix("Screen").lower()
        self.push_screen(HelpScreen(bindings, self.session.glyphs, behind))

    def action_repaint(self) -> None:
        """Repaint everything, after another program wrote over the screen."""
        self.screen.refresh(layout=True)


def commands_of(
    app: App[None], screen: Screen[object], bindings: Sequence[Binding]
) -> Iterable[SystemCommand]:
    """The command palette: one command per binding of the screen, with its keys as the help."""
    for binding in bindings:
        if binding.id == "app.palette":
            continue
        keys = "  ".join(shown_key(key) for key in binding.key.split(","))
        text = binding.tooltip or binding.description
        known = binding.description in ("", text) or binding.description in text
        title = text if known else f"{binding.description}: {text}"
        namespace = app if binding.action.startswith("app.") else screen
        yield SystemCommand(title, keys, partial(app.run_action, binding.action, namespace))
