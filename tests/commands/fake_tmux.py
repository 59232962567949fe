"""As much of tmux as the demo asks for: a session of two panes, the second in the background."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

HOME = Path(os.environ["FAKE_TMUX"])


def new_session(arguments: list[str]) -> int:
    flag, name, *words = arguments
    assert flag == "-s"
    if os.environ.get("STUB_TMUX") == "fails":
        sys.stderr.write("open terminal failed\n")
        return 1
    split = words.index(";")
    first, second = words[:split], words[split + 1 :]
    assert second[:6] == ["split-window", "-d", "-v", "-b", "-l", "25%"]
    environment = os.environ | {"TMUX": "fake"}
    behind = subprocess.Popen(
        second[6:], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
    )
    (HOME / name).write_text(str(os.getpid()))
    front = subprocess.Popen(first, env=environment)

    def end(*_: object) -> None:
        behind.kill()
        with suppress(ProcessLookupError):
            front.kill()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGHUP, end)
    front.wait()
    behind.kill()
    return 0


def kill_session(arguments: list[str]) -> int:
    flag, target = arguments
    assert flag == "-t"
    assert target.startswith("="), "the exact name: another demo may begin alike"
    with suppress(FileNotFoundError, ProcessLookupError):
        os.kill(int((HOME / target[1:]).read_text()), signal.SIGTERM)
    return 0


if __name__ == "__main__":
    verb = {"new-session": new_session, "kill-session": kill_session}[sys.argv[1]]
    sys.exit(verb(sys.argv[2:]))
