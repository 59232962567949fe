"""File system events: a hint to look at once at a log that is looked at now and then anyway."""

import logging
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from watchdog.observers.api import BaseObserver


class FileEvents:
    """Wakes the reader when one file changes, which costs the kernel one watch: of its folder."""

    def __init__(self) -> None:
        self.path: Path | None = None
        """What is watched, or was to be."""
        self._observer: BaseObserver | None = None
        self._changed = threading.Event()

    def watch(self, path: Path) -> None:
        """Watch this file, which may be replaced by another, and no other.

        Never raises: on NFS no events come, and the kernel may have no watches left. Then a change
        is found at the next look.
        """
        if path == self.path:
            return
        self.stop()
        self.path = path
        try:
            self._observer = _observe(path, self._changed)
        except Exception:
            logging.getLogger(__name__).debug("no events of %s", path, exc_info=True)

    def wait(self, timeout_s: float) -> bool:
        """Whether a change was announced since the last wait, or is in time."""
        changed = self._changed.wait(timeout_s)
        self._changed.clear()
        return changed

    def stop(self) -> None:
        """And wake the waiting thread."""
        observer, self._observer = self._observer, None
        if observer is not None:
            observer.stop()
        self.path = None
        self._changed.set()


def _observe(path: Path, changed: threading.Event) -> "BaseObserver":
    from watchdog import events
    from watchdog.observers import Observer

    class Handler(events.FileSystemEventHandler):
        def on_any_event(self, event: "events.FileSystemEvent") -> None:
            if path.name in (os.path.basename(event.src_path), os.path.basename(event.dest_path)):
                changed.set()

    logging.getLogger("watchdog").addHandler(logging.NullHandler())  # the screen is ours
    observer = Observer()
    # Without opening and closing: reading the log must not report a change.
    wanted = [events.FileModifiedEvent, events.FileCreatedEvent, events.FileMovedEvent]
    observer.schedule(Handler(), str(path.parent), event_filter=wanted)
    try:
        observer.start()
    except BaseException:
        observer.stop()
        raise
    return observer
