"""The command line. Standard output is data, standard error is narration.

Exit codes are an API: 0 to 3 are verdicts of ``check``, 64 is a usage error. A command is imported
when it is called, not before: neither the first screen nor ``check`` waits for the others.
"""

import sys
from collections.abc import Sequence
from importlib import metadata
from typing import NoReturn

from cyclopts import App, CycloptsError

from microscope_tui.commands.watch import watch
from microscope_tui.console import PIPE, USAGE, fail
from microscope_tui.report.check import NO_VERDICT
from microscope_tui.runlog.discover import NoRuns
from microscope_tui.runlog.safe_text import safe_text

COMMANDS = {
    "check": (
        "check:check",
        "Judge the newest run: 0 healthy, 1 warning, 2 critical, 3 no verdict.",
    ),
    "snapshot": ("snapshot:snapshot", "Print any screen at any step: text, data or a picture."),
    "explain": ("explain:explain", "List the rules, or say what one means and what to do."),
    "demo": ("demo:demo", "Write a synthetic run with known truth and open the microscope on it."),
    "keys": ("keys:keys_command", "List the keys of every screen: id, keys, what they do."),
    "doctor": ("doctor:doctor", "Say what this terminal can show and what a screen costs."),
}
"""Name of each command → where it is, and what it does in a line."""

app = App(
    name="moe-microscope",
    help="Watch the routers of a Mixture-of-Experts model while it trains.",
    version=lambda: metadata.version("moe-microscope"),
    result_action="return_value",
)
app.default(watch)
for name, (place, help_) in COMMANDS.items():
    app.command(f"microscope_tui.commands.{place}", name=name, help=help_)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    given = sys.argv[1:] if arguments is None else arguments
    # A lone hyphen would be an option without a name; spelled like this it is the same path.
    tokens = [f"./{PIPE}" if token == str(PIPE) else token for token in given]
    try:
        code = app(tokens, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        fail(f"{safe_text(error, 300)} (see moe-microscope --help)", USAGE)
    except NoRuns as error:
        fail(str(error), NO_VERDICT)
    except KeyboardInterrupt:
        code = 130
    except Exception as error:  # never exit with 1 by accident: 1 is a verdict
        fail(f"failed: {error!r}", NO_VERDICT)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
