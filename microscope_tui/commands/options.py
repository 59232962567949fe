"""The options of ``check``, and which of them exclude each other."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from microscope_tui.console import USAGE, fail
from microscope_tui.diagnosis import RULES
from microscope_tui.runlog import safe_text

WAIT_S = 600
"""A restarted job needs minutes until its run resumes."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Options:
    """How to judge, what to print, and what to do about it.

    Parameters
    ----------
    every
        Judge every run and exit with the worst code.
    as_json
        Print the report as JSON; with --follow one object a line.
    profile
        Judge as this kind of run, overriding the header: in fine-tuning only the change against
        a reference counts, in an evaluation nothing is trained.
    since_step
        Count only findings that began at this step or later; older ones that are still active
        are listed in a note.
    fail_on
        With ``crit`` a warning exits with 0.
    ignore
        A rule to leave out, reported in the output; may be repeated. ``explain`` lists the rules.
    baseline
        Judge against the last steps of this run: a log, or the folder of a run. Experts starved
        or dead there do not count; a run without a profile is judged as a fine-tuning.
    follow
        Follow the newest run until it ends: print every new alert at once, then the report.
        Waits for a log that does not exist yet; does not switch to a newer run. Ctrl-C prints the
        verdict so far.
    wait
        With --follow: seconds to wait for a stopped or silent run to resume, for example when its
        job is restarted; 0 does not wait. Runs that finished, failed or stopped on a collapse
        are not waited for.
    notify_command
        With --follow: run this shell command for every alert, with the finding as one line of
        JSON on its standard input.
    format_only
        Validate the file against the log format instead of judging the run. Exit code 0, or 3
        with line and reason of every error. With ``--all``, every log below the folder.
    config
        Limits of the rules, as [rules.NAME] tables in TOML; by default config.toml in your
        configuration folder, if it exists.
    """

    every: Annotated[bool, Parameter(name="--all", negative=())] = False
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False
    profile: Literal["pretrain", "finetune", "eval"] | None = None
    since_step: int = 0
    fail_on: Literal["warn", "crit"] = "warn"
    ignore: Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)] = ()
    baseline: Path | None = None
    follow: Annotated[bool, Parameter(negative=())] = False
    wait: int = WAIT_S
    notify_command: str | None = None
    format_only: Annotated[bool, Parameter(negative=())] = False
    config: Path | None = None

    @property
    def ignored(self) -> frozenset[str]:
        """The rules to leave out, by their names in the catalogue."""
        return frozenset(name.upper() for name in self.ignore)

    def refuse_nonsense(self) -> None:
        """Exit with a usage error if the options contradict each other."""
        for name in self.ignore:
            if name.upper() not in RULES:
                known = ", ".join(RULES)
                fail(f"--ignore {safe_text(name, 40)}: no such rule; there are {known}", USAGE)
        if self.since_step < 0:
            fail(f"--since-step {self.since_step}: the first step of a run is 1", USAGE)
        if self.format_only and (given := self._judging()):
            fail(f"--format-only does not judge runs: remove {', '.join(given)} out", USAGE)
        if self.follow and self.every:
            fail("--follow follows the newest run: leave --all out, or name the run", USAGE)
        if self.wait < 0:
            fail(f"--wait {self.wait}: write seconds, 0 for none", USAGE)
        if self.wait != WAIT_S and not self.follow:
            fail(f"--wait {self.wait} waits for a run to resume: add --follow", USAGE)
        if self.notify_command is not None and not self.follow:
            fail("--notify-command reports alerts as they happen: add --follow", USAGE)
        if self.notify_command is not None and not self.notify_command.strip():
            fail("--notify-command is empty: give a command for the shell", USAGE)

    def _judging(self) -> list[str]:
        """The given options that concern the judgement of a run."""
        given = {
            "--profile": self.profile,
            "--since-step": self.since_step,
            "--fail-on": self.fail_on != "warn",
            "--ignore": self.ignore,
            "--baseline": self.baseline,
            "--follow": self.follow,
            "--wait": self.wait != WAIT_S,
            "--notify-command": self.notify_command,
            "--config": self.config,
        }
        return [name for name, value in given.items() if value]
