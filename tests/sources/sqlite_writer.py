"""A writer of SQLite in a process of its own, as trainers are: locks belong to a process."""

import json
import select
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import IO, Any

GOLDEN = Path(__file__).parent / "golden"
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
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *statements: Any) -> list[list[Any]]:
        """Run statements, each a text or a list of a text and its values."""
        return self.start(*statements).check()

    def start(self, *statements: Any) -> "Writing":
        """Begin to run statements, without waiting for their end."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        lists = [[s] if isinstance(s, str) else s for s in statements]
        process.stdin.write(json.dumps(lists) + "\n")
        process.stdin.flush()
        return Writing(process.stdout)

    def kill(self) -> None:
        """End it without closing the database."""
        self._process.kill()
        self.__exit__(None, None, None)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


class Writing:
    """Statements that are under way."""

    def __init__(self, answers: IO[str]) -> None:
        self._answers = answers

    @property
    def is_done(self) -> bool:
        """Whether ``check`` returns at once."""
        return bool(select.select([self._answers], [], [], 0)[0])

    def check(self) -> list[list[Any]]:
        """Wait for the end; the rows that were selected."""
        found = json.loads(self._answers.readline())
        assert not isinstance(found, str), found
        return list(found)


def golden(path: Path, name: str, *more: str) -> Path:
    """A database of a real writer, made again from the statements that hold it."""
    with closing(sqlite3.connect(path)) as database:
        database.executescript(f"BEGIN; {(GOLDEN / name).read_text()} COMMIT;")
        for statement in more:
            database.execute(statement)
        database.commit()
    return path
