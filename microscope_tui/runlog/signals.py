"""What Ctrl-C and SIGTERM do while something runs that must end in order."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def on_stop_signals(act: Callable[[int], None]) -> Iterator[None]:
    """Both call ``act`` with their number; ignored signals stay ignored, as nohup requires.

    Outside of the main thread nothing changes.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        act(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
