"""The subcommands; the plain call opens the screens."""

COMMANDS = {
    "check": (
        "check:check",
        "Judge the newest run: 0 healthy, 1 warning, 2 critical, 3 no verdict.",
    ),
    "snapshot": ("snapshot:snapshot", "Print any screen at any step: text, data or a picture."),
    "explain": ("about:explain", "List the rules, or explain one and what to do about it."),
    "probe": ("probe:probe", "Trace what the experts of a finished model do with a text."),
    "export": ("export:export", "Write a run as a table: one row per step and router."),
    "import": ("import_runs:import_runs", "Write what another tool logged as run logs."),
    "coverage": ("coverage:coverage", "List the experts that saw too few tokens: 0 none, 1 some."),
    "mismatch": ("mismatch:mismatch", "Compare what two probes of the same tokens chose."),
    "sources": ("about:sources", "List what is understood of other tools' files."),
    "demo": ("demo:demo", "Write a synthetic run with known ground truth and open it."),
    "keys": ("about:keys", "List the keys of every screen: id, keys, what they do."),
    "doctor": ("about:doctor", "Report what this terminal can show, and why."),
}
"""Name of each command → its location and a one-line description."""
