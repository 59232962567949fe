"""A writer of SQLite in a process of its own, as trainers are: locks belong to a process."""

import json
import select
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

_PROGRAM = """
import json, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=0)
for line in sys.stdin:
    try:
        found = [list(row) for one in json.loads(line) for row in database.execute(*one)]
    except sqlite3.Error as error:
        found = str(error)
    print(json.dumps(found), flush=True)
"""


class Writer:
    """Runs statements in another process; a lock makes it fail at once."""

    def __init__(self, path: Path) -> None:
        command = [sys.executable, "-S", "-c", _PROGRAM, str(path)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    def start(self, *statements: Any) -> None:
        """Begin to run statements, each a text or a list of a text and its values."""
        assert self._process.stdin is not None
        lists = [[s] if isinstance(s, str) else s for s in statements]
        self._process.stdin.write(json.dumps(lists) + "\n")
        self._process.stdin.flush()

    @property
    def is_done(self) -> bool:
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    def finish(self) -> list[list[Any]]:
        assert self._process.stdout is not None
        found = json.loads(self._process.stdout.readline())
        assert not isinstance(found, str), found
        return list(found)

    def run(self, *statements: Any) -> list[list[Any]]:
        self.start(*statements)
        return self.finish()

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


def made(path: Path, *statements: Any) -> Path:
    with closing(sqlite3.connect(path)) as database:
        for statement in statements:
            database.execute(*([statement] if isinstance(statement, str) else statement))
        database.commit()
    return path
