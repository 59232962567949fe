"""The version of this package, with the commit it was built from or runs from."""

import subprocess
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def own_version() -> str:
    """``0.1.0 (1a2b3c4d5e6f-dirty)``, or only the number where no commit is known."""
    commit = ""
    with suppress(OSError, subprocess.SubprocessError):
        if (_PACKAGE.parent / ".git").exists():
            command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
            commit = subprocess.check_output(
                command, cwd=_PACKAGE, stderr=subprocess.DEVNULL, timeout=5, text=True
            )
        else:  # hatch_build.py writes it into a wheel
            commit = (_PACKAGE / "commit.txt").read_text()
    number = version("moe-microscope")
    return f"{number} ({commit.strip()})" if commit else number
