"""The command line. Standard output is data, standard error is narration.

Exit codes are an API: 0 to 3 are verdicts of ``check``, 64 is a usage error. The plain call, which
opens the screens, needs no parser and so does not wait for one.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from microscope_tui.commands import COMMANDS
from microscope_tui.console import DEFAULT_PATH, PIPE, fail, memory_bytes, spool_bytes
from microscope_tui.report import NO_VERDICT
from microscope_tui.runlog import NoRuns


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    given = sys.argv[1:] if arguments is None else arguments
    # A lone hyphen would be parsed as an option; spelled like this it is the same path.
    tokens = [f"./{PIPE}" if token == str(PIPE) else token for token in given]
    try:
        code = _run(tokens)
    except NoRuns as error:
        fail(str(error), NO_VERDICT)
    except KeyboardInterrupt:
        code = 130
    except Exception as error:  # never exit with 1 by accident: 1 is a verdict
        fail(f"failed: {error!r}", NO_VERDICT)
    sys.exit(code if isinstance(code, int) else 0)


def _run(tokens: Sequence[str]) -> int | None:
    if not tokens or (len(tokens) == 1 and _is_path(tokens[0])):
        from microscope_tui.commands import read_config, watch_with

        path = Path(tokens[0]) if tokens else DEFAULT_PATH
        return watch_with(path, memory_bytes(""), read_config(None), spool_bytes(""))
    from microscope_tui.commands import run

    return run(tokens)


def _is_path(token: str) -> bool:
    return bool(token) and token not in COMMANDS and not token.startswith("-")


if __name__ == "__main__":
    main()
