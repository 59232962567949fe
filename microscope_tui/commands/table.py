"""The subcommands; the plain call opens the screens."""

COMMANDS = {
    "check": (
        "check:check",
        "Judge the newest run: 0 healthy, 1 warning, 2 critical, 3 no verdict.",
    ),
    "snapshot": ("snapshot:snapshot", "Print any screen at any step: text, data or a picture."),
    "explain": ("explain:explain", "List the rules, or explain one and what to do about it."),
    "demo": ("demo:demo", "Write a synthetic run with known ground truth and open it."),
    "keys": ("keys:keys_command", "List the keys of every screen: id, keys, what they do."),
    "doctor": ("doctor:doctor", "Report what this terminal can show and what a screen costs."),
}
"""Name of each command → its location and a one-line description."""
