"""Programs that start with their imports made: a server imports once, every program is its fork.

Importing torch and the trainer costs three seconds of CPU, the viewer a third of one, a fork some
milliseconds. A program runs as from a shell: as ``__main__``, with its own input, output, signals,
folder and exit code; a warning is an error. Where the start of the interpreter is the claim, tests
use ``subprocess``.
"""

import atexit
import gc
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import IO

ROOT = Path(__file__).resolve().parents[1]
NUMBER = struct.Struct("i")


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


class Program:
    """A forked program: the part of ``subprocess.Popen`` that the tests use."""

    def __init__(
        self, server: socket.socket, words: Sequence[str], env: dict[str, str], given: bytes
    ) -> None:
        self.returncode: int | None = None
        self._answers, theirs = socket.socketpair()
        self._output, self._errors = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115  # closed below
        source, sink = os.pipe()
        passed = [theirs.fileno(), source, self._output.fileno(), self._errors.fileno()]
        request = json.dumps([list(words), env, os.getcwd()]).encode()
        socket.send_fds(server, [request], passed)
        theirs.close()
        os.close(source)
        Thread(target=feed, args=(sink, given), daemon=True).start()
        self.pid = self._answer()

    def _answer(self) -> int:
        (number,) = NUMBER.unpack(self._answers.recv(NUMBER.size, socket.MSG_WAITALL))
        return int(number)

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._answers], [], [], 0)[0]:
            self.returncode = self._answer()
        return self.returncode

    def wait(self, timeout: float = 120) -> int:
        if self.returncode is None and not select.select([self._answers], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        return self.poll()

    def printed(self) -> tuple[str, str]:
        output, errors = (text_of(file) for file in (self._output, self._errors))
        return output, errors

    def communicate(self, timeout: float = 120) -> tuple[str, str]:
        self.wait(timeout)
        found = self.printed()
        self.close()
        return found

    def send_signal(self, number: int) -> None:
        with suppress(ProcessLookupError):  # it has ended, and is not reported yet
            if self.poll() is None:
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def close(self) -> None:
        for file in (self._answers, self._output, self._errors):
            file.close()


def feed(sink: int, given: bytes) -> None:
    with suppress(BrokenPipeError), open(sink, "wb") as pipe:
        pipe.write(given)


def text_of(file: IO[bytes]) -> str:
    """All of a file that a program still writes: where it writes stays as it is."""
    size = os.fstat(file.fileno()).st_size
    return os.pread(file.fileno(), size, 0).decode("utf-8", "surrogateescape")


class ForkServer:
    def __init__(self, imports: str) -> None:
        """``imports``: what is imported beforehand, ``trainer`` or ``viewer``."""
        self._control, theirs = socket.socketpair()
        self._programs: list[Program] = []
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
        command = [sys.executable, "-m", "tests.forked", imports]
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=theirs)
        theirs.close()

    def start(self, *words: str, given: bytes = b"", **environment: str) -> Program:
        """Run ``FILE``, ``-m MODULE`` or ``-c CODE`` with arguments; ``given`` is its input."""
        program = Program(self._control, words, {**os.environ, **environment}, given)
        self._programs.append(program)
        return program

    def close(self) -> None:
        for program in self._programs:
            if program.returncode is None:
                program.kill()
            program.close()
        self._control.close()
        self._process.wait(timeout=60)


def import_trainer() -> None:
    import torch._dynamo  # an optimizer imports it
    import torch.distributed.fsdp

    import train  # noqa: F401  # what it imports is what takes long

    torch.set_num_threads(1)


def import_viewer() -> None:
    import microscope_tui

    heavy = dict.fromkeys(("torch", "numpy"))
    sys.modules.update(heavy)  # type: ignore[arg-type]  # a fork of both takes a third of a second
    found = pkgutil.walk_packages(microscope_tui.__path__, "microscope_tui.")
    for module in found:
        if not any(part in module.name for part in ("probe", ".cli", "__main__")):  # the program
            with suppress(ImportError):
                import_module(module.name)
    for name in heavy:
        del sys.modules[name]


def serve(imports: str) -> list[str]:
    """Fork a program for each request; returns in each of them, with its words."""
    {"trainer": import_trainer, "viewer": import_viewer}[imports]()
    gc.freeze()  # nothing imported here is searched for garbage, or copied, in a fork
    control = socket.socket(fileno=os.dup(0))
    while True:
        request, descriptors, _, _ = socket.recv_fds(control, 1 << 20, 4)
        if not request:
            os._exit(0)
        if os.fork() == 0:
            control.close()
            answers, *streams = descriptors
            if program := os.fork():
                for stream in streams:
                    os.close(stream)
                report(program, answers)
            os.close(answers)
            return become(*json.loads(request), streams)
        for descriptor in descriptors:
            os.close(descriptor)
        reap()


def reap() -> None:
    """Collect the processes that have reported the end of their program."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def report(program: int, answers: int) -> None:
    """Answer with the number of the program, and with its exit code once it has ended."""
    os.write(answers, NUMBER.pack(program))
    code = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
    try:
        os.write(answers, NUMBER.pack(code))
    except BrokenPipeError:
        os._exit(1)  # the test did not wait for it
    os._exit(0)


def become(
    words: list[str], environment: dict[str, str], folder: str, streams: list[int]
) -> list[str]:
    """Take on the environment, the streams and the signals of a program that a shell starts."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    warnings.simplefilter("error")
    return words


def run(words: list[str]) -> None:
    sys.argv = words[1:] if words[0] == "-m" else words
    if words[0] == "-m":
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        exec(words.pop(1), {"__name__": "__main__"})
    else:
        runpy.run_path(words[0], run_name="__main__")


def end(code: object) -> None:
    """End as the interpreter does, without taking its modules apart: with torch that costs 0.24 s.

    Returns where it must do it itself: if the output cannot be written.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    if not isinstance(code, int | None):
        sys.stderr.write(f"{code}\n")
        code = 1
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit((code or 0) & 0xFF)


if __name__ == "__main__":
    try:
        run(serve(sys.argv[1]))
    except SystemExit as wanted:
        end(wanted.code)
        raise
    end(0)
