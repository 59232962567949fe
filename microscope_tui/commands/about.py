"""Commands that need no run: a synthetic one, rules, formats of other tools, keys, the terminal."""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from msgspec.structs import replace

from microscope_tui.commands.config import default_config, keymap_from, read_config
from microscope_tui.commands.options import AsJson, Output, Switch
from microscope_tui.commands.version import own_version
from microscope_tui.console import USAGE, fail, print_data, print_json, say
from microscope_tui.diagnosis import RULES
from microscope_tui.lines import glyphs_for
from microscope_tui.report import Terminal, as_list, doctor_text, explained, rule_text
from microscope_tui.runlog import LOG_NAME, own_log, safe_text
from microscope_tui.scenarios import SCENARIOS, write_run, writing
from microscope_tui.sources import FORMATS

_ANSWER_S = 2.0


def explain(rule: str = "", /, *, as_json_: AsJson = False, config: Path | None = None) -> int:
    """List the rules, or explain one: what it means, when it fires, its limits, and the remedy.

    Parameters
    ----------
    rule
        Name of a rule, in any case; without it, list every rule.
    config
        Config file whose limits to show; by default your own, if it exists.
    """
    if rule and rule.upper() not in RULES:
        fail(f"{safe_text(rule, 40)}: no such rule; there are {', '.join(RULES)}", USAGE)
    limits = read_config(config).limits
    found = [explained(name, limits) for name in ([rule.upper()] if rule else RULES)]
    if as_json_:
        print_json({"schema_version": 1, "rules": found})
    else:
        print_data(rule_text(found[0]) if rule else as_list(found))
    return 0


def sources(*, as_json: AsJson = False) -> int:
    """List the formats: the name for --source, what is read and shown, whether it is live."""
    rows = [
        {"source": form.name, "reads": form.reads, "shows": form.shows, "live": form.live}
        for form in FORMATS.values()
    ]
    if as_json:
        print_json(rows)
        return 0
    width = max(len(row["source"]) for row in rows)
    for row in rows:
        print_data(f"{row['source']:<{width}}  {row['reads']}")
        print_data(f"{'':<{width}}  shows {row['shows']}; live: {row['live']}")
    print_data("\nA run log needs none of these. --map adds keys: see docs/sources.md.")
    return 0


def keys() -> int:
    """List the keys of every screen: id, keys, what they do."""
    from microscope_tui.app import key_table

    own = keymap_from(read_config())  # invalid keys exit with a usage error
    screens = key_table(own)
    every = [row for rows in screens.values() for row in rows]
    ids, written = (max(len(row[at]) for row in every) for at in (0, 1))
    blocks = [
        [f"{screen} screen", *(f"  {row[0]:<{ids}}  {row[1]:<{written}}  {row[2]}" for row in rows)]
        for screen, rows in screens.items()
    ]
    print_data("\n\n".join("\n".join(lines) for lines in blocks))
    say(f'[keys] in {default_config()} changes them, for example layer.next = "n,down"')
    return 0


def doctor() -> int:
    """Report what this terminal can show, how that was detected, and what would help."""
    versions = {"moe-microscope": own_version()}
    versions |= {name: metadata.version(name) for name in ("textual", "rich")}
    versions |= {"Python": platform.python_version(), platform.system(): platform.release()}
    streams = (sys.stderr, sys.stdout, sys.stdin)  # the screens use standard error
    size = next((os.get_terminal_size(s.fileno()) for s in streams if s.isatty()), None)
    used = shutil.get_terminal_size(size) if size else None
    glyphs = glyphs_for("auto", sys.stderr)
    encoding = (sys.stderr.encoding or "ascii").lower()
    tmux = tmux_says() if os.environ.get("TMUX") else ""
    print_data(doctor_text(versions, Terminal(os.environ, encoding, glyphs, size, used, tmux)))
    return 0


def tmux_says() -> str:
    """The features of the terminal outside, as tmux lists them; empty if tmux does not answer."""
    command = ["tmux", "display-message", "-p", "#{client_termfeatures}"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_ANSWER_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return safe_text(done.stdout.decode("utf-8", "replace").strip(), 200)


def demo(
    *,
    scenario: str = "collapse",
    list_: Annotated[bool, Parameter(name="--list", negative=())] = False,
    live: Switch = False,
    seed: int = 0,
    output: Output = None,
) -> int:
    """Write a synthetic run with known ground truth and open it.

    Parameters
    ----------
    scenario
        What happens in the run: a name from ``--list``.
    list_
        List the scenarios instead, with a sentence on each.
    live
        Write the run step by step while you watch.
    seed
        Seed of the synthetic run.
    output
        Folder for the run; by default a temporary one, removed afterwards.
    """
    if list_:
        width = max(map(len, SCENARIOS))
        for name, one in SCENARIOS.items():
            print_data(f"{name:<{width}}  {(one.build.__doc__ or '').splitlines()[0]}")
        return 0
    if scenario not in SCENARIOS:
        fail(f"unknown scenario {scenario!r}: choose one of {', '.join(SCENARIOS)}", USAGE)
    from microscope_tui.commands.watch import watch_with

    user = read_config()  # without saving view settings
    user = replace(user, view=replace(user.view, remember=False))
    with tempfile.TemporaryDirectory(prefix="moe-microscope-") as temporary:
        logs = output or Path(temporary)
        folder = logs / scenario
        if (own := own_log(logs)) is not None:
            fail(f"{own}: {logs} is the folder of that run; choose another -o", USAGE)
        if (folder / LOG_NAME).exists():
            fail(f"{folder}: already contains a run; choose another -o, or remove it", USAGE)
        if live and not (sys.stderr.isatty() and sys.stdin.isatty()):
            say("no terminal to watch a live run in: writing it at once")
            live = False
        if live:
            with writing(folder, scenario, seed):
                return watch_with(logs, user)
        try:
            write_run(folder, scenario, seed=seed)
        except OSError as error:
            fail(f"{folder}: cannot be written: {error.strerror}; choose another -o", USAGE)
        return watch_with(logs, user)
