"""The probe of the open run: its ``routing.bin``, the cursor in its text, and the searched text."""

import asyncio
from pathlib import Path

from microscope_tui.extensions.anatomy.compare import Mismatch
from microscope_tui.extensions.anatomy.layout import BadRouting
from microscope_tui.extensions.anatomy.routing_file import Routing
from microscope_tui.extensions.anatomy.token_flow import shown_token
from microscope_tui.kit.session import Session
from microscope_tui.runlog import ROUTING_NAME, safe_text


def anatomy_of(session: Session) -> "Anatomy":
    """What this extension remembers of a session, from the first use on."""
    found = session.extensions.setdefault("anatomy", Anatomy())
    assert isinstance(found, Anatomy)
    return found


class Anatomy:
    def __init__(self) -> None:
        self.routing: Routing | None = None
        self.problem = ""
        """Why there is none; empty if the run has no such file."""
        self.token = 0
        self.layer = 0
        self.letters: bool | None = None
        """Whether letters are shown below the text; by default where there are no colours."""
        self.found = ""
        self.names: dict[int, str] = {}
        self.mismatches: dict[tuple[object, ...], Mismatch | str] = {}
        """By the state of the files of both probes; or why there is none."""
        self._log: Path | None = None
        self._router: tuple[str, int] | None = None

    async def open(self, log: Path) -> Routing | None:
        """The file beside ``log``; tried again while there is none."""
        if log != self._log:
            self.close()
            self._log, self.token, self.layer, self.found = log, 0, 0, ""
        if self.routing is None:
            self.problem, path = "", log.with_name(ROUTING_NAME)
            try:
                self.routing = await asyncio.to_thread(Routing, path)
            except FileNotFoundError:
                pass
            except BadRouting as error:
                self.problem = safe_text(error, 300)
            except OSError as error:
                self.problem = safe_text(f"{path}: {error.strerror or error}", 300)
        return self.routing

    def close(self) -> None:
        """Close the file of the probe, if one is open."""
        if self.routing is not None:
            self.routing.close()
        self.routing, self._log, self._router = None, None, None
        self.names.clear()

    def follow_router(self, name: str, index: int) -> None:
        """Show the layer of this router, if another screen has just chosen it."""
        if self.routing is None or self._router == (name, index):
            return
        self._router, names = (name, index), self.routing.shape.layer_names
        if name in names:
            self.layer = names.index(name)
        elif index < len(names):
            self.layer = index

    def name_of(self, token_id: int) -> str:
        """Its id if it does not occur."""
        if token_id not in self.names and self.routing is not None:
            text = self.routing.text_of_id(token_id)
            self.names[token_id] = f"#{token_id}" if text is None else shown_token(text, 16)
        return self.names.get(token_id, f"#{token_id}")
