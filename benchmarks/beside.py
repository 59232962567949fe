"""A writer of run logs at work in a process of its own, beside what is measured."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


@contextmanager
def writing(module: str, arguments: Sequence[str]) -> Iterator[None]:
    """Run a module that says ``ready`` once the history is written; ends it afterwards.

    Raises:
        RuntimeError: it did not start, or ended early.
    """
    command = [sys.executable, "-m", module, *arguments]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert writer.stdout is not None
        if writer.stdout.readline() != b"ready\n":
            raise RuntimeError("the writer did not start; its message stands above")
        yield
        if writer.poll() is not None:
            raise RuntimeError(f"the writer ended early, with code {writer.returncode}")
    finally:
        writer.kill()
        writer.communicate()
