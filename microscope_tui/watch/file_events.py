"""File system events as a hint to read now; polling remains the ground truth.

The mode is ``polling`` where events cannot be had (a kernel limits watches) or do not arrive
although files grow (network and shared file systems).
"""

import errno
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from microscope_tui.runlog import ARCHIVE_SUFFIXES

if TYPE_CHECKING:
    from watchdog.events import FileSystemEvent
    from watchdog.observers.api import BaseObserver

_MAX_FOLDERS = 8192
"""More would take seconds, and the user's editor needs watches too."""
_LATE_S = 1.0
_REASONS = {
    errno.ENOSPC: "inotify watch limit reached",
    errno.EMFILE: "inotify instance limit reached",
}


class FileEvents:
    """Waits for changes of the logs below ``root``, a folder or a single file."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.mode = "polling"
        """``events`` or ``polling``."""
        self.reason = "not started"
        """Why ``polling``, for the screen."""
        self._observer: BaseObserver | None = None
        self._changed = threading.Event()
        self._only: str | None = None  # name of the single file that is watched
        self._unannounced = 0
        self._found_at = -_LATE_S

    def start(self) -> None:
        """Never raises. A thousand folders take some hundredths of a second."""
        try:
            self._start()
            self.mode = "events"
            self.reason = ""
        except ImportError:
            self._poll("watchdog is not installed")
        except OSError as error:
            self._poll(_REASONS.get(error.errno or 0) or error.strerror or str(error))
        except Exception as error:  # events are only a hint: fall back to polling
            self._poll(f"no events: {error!r}")

    def wait(self, timeout_s: float) -> bool:
        """Whether a change was announced since the last wait, or is in time."""
        changed = self._changed.wait(timeout_s)
        self._changed.clear()
        return changed

    def poll_found_change(self) -> None:
        """A log grew without an event: after the second time, fall back to polling."""
        self._unannounced += 1
        self._found_at = time.monotonic()
        if self._unannounced >= 2 and self.mode == "events":
            self._poll("events did not arrive")

    def stop(self) -> None:
        """And wake the waiting thread."""
        observer, self._observer = self._observer, None
        if observer is not None:
            observer.stop()
        self._changed.set()

    def _poll(self, reason: str) -> None:
        self.mode = "polling"
        self.reason = reason
        self.stop()

    def _start(self) -> None:
        root = self.root.resolve(strict=True)
        logging.getLogger("watchdog").addHandler(logging.NullHandler())  # the screen is ours
        if not root.is_dir():
            self._only = root.name
            self._observer = self._observe(root.parent, recursive=False)
        elif _more_folders_than(root, _MAX_FOLDERS):
            raise OSError(f"more than {_MAX_FOLDERS:,} folders")
        else:
            self._observer = self._observe(root, recursive=True)
            # The observer does not report that a folder inside could not be watched.
            self._observe(root, recursive=False).stop()

    def _observe(self, folder: Path, recursive: bool) -> "BaseObserver":
        from watchdog import events
        from watchdog.observers import Observer
        from watchdog.observers.polling import PollingObserver

        outer = self

        class Handler(events.FileSystemEventHandler):
            def on_any_event(self, event: "FileSystemEvent") -> None:
                outer._note(event)

        # Without opening and closing: reading the logs must not report a change.
        wanted: list[type[FileSystemEvent]] = [
            events.FileModifiedEvent,
            events.FileCreatedEvent,
            events.FileMovedEvent,
            events.FileDeletedEvent,
            events.DirCreatedEvent,
            events.DirMovedEvent,
            events.DirDeletedEvent,
        ]
        observer = Observer()
        if isinstance(observer, PollingObserver):
            raise OSError(f"no file system events on {sys.platform}")
        observer.schedule(Handler(), str(folder), recursive=recursive, event_filter=wanted)
        try:
            observer.start()
        except BaseException:
            observer.stop()
            raise
        return observer

    def _note(self, event: "FileSystemEvent") -> None:
        names = [os.path.basename(os.fsdecode(p)) for p in (event.src_path, event.dest_path) if p]
        if self._only is not None:
            ours = self._only in names
        else:
            logs = (".jsonl", *ARCHIVE_SUFFIXES)
            ours = event.is_directory or any(name.endswith(logs) for name in names)
        if ours:
            if time.monotonic() - self._found_at < _LATE_S:
                self._unannounced = max(0, self._unannounced - 1)
                self._found_at = -_LATE_S
            self._changed.set()


def _more_folders_than(root: Path, limit: int) -> bool:
    waiting, seen = [os.fspath(root)], 1
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                inside = [e.path for e in entries if e.is_dir(follow_symlinks=False)]
        except OSError:
            continue  # another user's folder: not watched either
        waiting += inside
        seen += len(inside)
        if seen > limit:
            return True
    return False
