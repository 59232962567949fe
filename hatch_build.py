"""Writes the commit into a wheel and an sdist, where ``--version`` finds no git to ask."""

import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CommitHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        # An editable install runs from here. An unpacked sdist has no .git, and the file already.
        if version == "editable" or not Path(self.root, ".git").exists():
            return
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        with suppress(OSError, subprocess.CalledProcessError):  # git is missing, or refuses
            commit = subprocess.check_output(command, cwd=self.root)
            self.folder = tempfile.TemporaryDirectory()  # for as long as the build takes
            file = Path(self.folder.name, "commit.txt")
            file.write_bytes(commit)
            build_data["force_include"][str(file)] = "microscope_tui/commit.txt"
