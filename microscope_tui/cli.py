"""The command line. Standard output is data, standard error is narration.

Exit codes are an API: 0 to 3 are verdicts of ``check``, 64 is a usage error. The UI is imported
only when it opens, so that ``check`` starts quickly on a login node.
"""

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal, NoReturn

from cyclopts import App, CycloptsError, Parameter

from microscope_tui.diagnosis.episodes import CAUSES_FIRST
from microscope_tui.report.check import NO_VERDICT, as_json, as_text, judge, worst_code
from microscope_tui.report.glyphs import Glyphs
from microscope_tui.report.locale import glyphs_for
from microscope_tui.report.snapshot import snapshot_text
from microscope_tui.runlog.discover import NoRuns, RunFile, find_runs, unreadable_logs
from microscope_tui.runlog.records import LOG_NAME
from microscope_tui.runlog.safe_text import safe_text
from microscope_tui.scenarios.synthetic import SCENARIOS, Shape
from microscope_tui.scenarios.write import UnknownScenario, write_run
from microscope_tui.watch.run_watch import RunWatch

USAGE = 64
_SMALLEST = (20, 5)

app = App(
    name="moe-microscope",
    help="Watch the routers of a Mixture-of-Experts model while it trains.",
    version=lambda: metadata.version("moe-microscope"),
    result_action="return_value",
)


@app.default
def watch(
    path: Path = Path("logs"),
    /,
    *,
    color: Literal["auto", "truecolor", "256", "16", "never"] = "auto",
    glyphs: Literal["auto", "braille", "block", "ascii"] = "auto",
) -> int:
    """Open the microscope on a folder of runs, one run folder, or one .jsonl file.

    Parameters
    ----------
    path
        Where the runs are. A folder that is still empty is waited on.
    color
        How many colours the terminal can show; ``never`` also obeys NO_COLOR.
    glyphs
        Characters for curves: braille needs a font that has it, ascii works everywhere.
    """
    runs = _runs(path, may_be_empty=True)
    if not (sys.stderr.isatty() and sys.stdin.isatty()):
        _fail_without_runs(path, runs)
        _say("no terminal here: printing a snapshot instead")
        return _print_snapshot(runs[0], 100, glyphs_for(glyphs, sys.stdout))
    if len(runs) == 1:
        _fail_if_unreadable(runs[0])
    _prepare_terminal(color)
    from microscope_tui.app.microscope import Microscope

    microscope = Microscope(path, glyphs=glyphs_for(glyphs, sys.stderr))
    microscope.run(mouse=False)
    return microscope.return_code or 0


@app.command
def check(
    path: Path,
    /,
    *,
    every: Annotated[bool, Parameter(name="--all", negative=())] = False,
    as_json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
    since_step: int = 0,
    fail_on: Literal["warn", "crit"] = "warn",
    ignore: Annotated[list[str] | None, Parameter(negative=())] = None,
) -> int:
    """Judge the newest run: exit code 0 healthy, 1 warning, 2 critical, 3 no verdict.

    Parameters
    ----------
    path
        A folder of runs, one run folder, or one .jsonl file.
    every
        Judge every run and exit with the worst code.
    as_json_
        Print the report as JSON.
    since_step
        Only episodes with evidence from this step on count.
    fail_on
        With ``crit`` a warning exits with 0.
    ignore
        Rules to leave out (METER, COLLAPSE, DEAD, DROPS); said in the output.
    """
    unknown = [name for name in ignore or () if name.upper() not in CAUSES_FIRST]
    if unknown:
        _fail(f"--ignore {unknown[0]}: no such rule; there are {', '.join(CAUSES_FIRST)}", USAGE)
    runs = _runs(path)
    judgements = [
        judge(run, since_step=since_step, fail_on=fail_on, ignore=ignore or ())
        for run in (runs if every else runs[:1])
    ]
    if as_json_:
        _print(json.dumps(as_json(judgements), indent=2, ensure_ascii=False))
    else:
        _print("\n".join(as_text(judgement) for judgement in judgements))
    return worst_code([judgement.exit_code for judgement in judgements])


@app.command
def snapshot(
    path: Path,
    /,
    *,
    size: str = "",
    glyphs: Literal["auto", "braille", "block", "ascii"] = "auto",
    output: Annotated[Path | None, Parameter(name=["-o", "--output"])] = None,
) -> int:
    """Print the main screen of the newest run as text.

    Parameters
    ----------
    path
        A folder of runs, one run folder, or one .jsonl file.
    size
        COLUMNSxROWS; by default 100 columns and all layers.
    glyphs
        Characters for curves.
    output
        Write to this file instead of the standard output.
    """
    columns, rows = _size(size)
    run = _runs(path)[0]
    if output is None:
        return _print_snapshot(run, columns, glyphs_for(glyphs, sys.stdout), rows)
    chosen = Glyphs.BRAILLE if glyphs == "auto" else Glyphs(glyphs)
    try:
        output.write_text(_snapshot(run, columns, chosen, rows) + "\n", encoding="utf-8")
    except OSError as error:
        _fail(f"{output}: cannot be written: {error.strerror}; choose another -o", USAGE)
    return 0


@app.command
def demo(
    *,
    scenario: str = "collapse",
    live: Annotated[bool, Parameter(negative=())] = False,
    seed: int = 0,
    output: Annotated[Path | None, Parameter(name=["-o", "--output"])] = None,
) -> int:
    """Write a synthetic run with known truth and open the microscope on it.

    Parameters
    ----------
    scenario
        healthy or collapse.
    live
        Write step by step while the microscope watches.
    seed
        Another seed, another run.
    output
        Folder for the run; by default a temporary one that is removed afterwards.
    """
    if scenario not in SCENARIOS:
        _fail(f"unknown scenario {scenario!r}: choose one of {', '.join(SCENARIOS)}", USAGE)
    with tempfile.TemporaryDirectory(prefix="moe-microscope-") as temporary:
        logs = output or Path(temporary)
        folder = logs / scenario
        if (folder / LOG_NAME).exists():
            _fail(f"{folder}: holds a run already; choose another -o, or remove it", USAGE)
        if live:
            from microscope_tui.scenarios.live import writing

            with writing(folder, scenario, seed):
                return watch(logs)
        try:
            write_run(folder, scenario, shape=Shape(), seed=seed)
        except OSError as error:
            _fail(f"{folder}: cannot be written: {error.strerror}; choose another -o", USAGE)
        return watch(logs)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit."""
    try:
        code = app(arguments, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        _fail(f"{safe_text(error, 300)} (see moe-microscope --help)", USAGE)
    except (NoRuns, UnknownScenario) as error:
        _fail(str(error), NO_VERDICT)
    except KeyboardInterrupt:
        code = 130
    except Exception as error:  # never exit with 1 by accident: 1 is a verdict
        _fail(f"failed: {error!r}", NO_VERDICT)
    sys.exit(code if isinstance(code, int) else 0)


def _runs(path: Path, may_be_empty: bool = False) -> list[RunFile]:
    """The runs at ``path``; a missing path and a folder without runs are said and end here."""
    if not path.exists():
        _fail(f"{path}: no such file or folder; train something, or name another path", NO_VERDICT)
    if path.is_dir() and not os.access(path, os.R_OK | os.X_OK):
        _fail(f"{path}: this folder may not be read by you; ask its owner", NO_VERDICT)
    runs = find_runs(path)
    unreadable = unreadable_logs(path)
    if unreadable and not runs:
        _fail(f"no run can be read: {'; '.join(unreadable[:3])}; ask their owner", NO_VERDICT)
    for reason in unreadable:
        _say(f"skipped {reason}")
    if not may_be_empty:
        _fail_without_runs(path, runs)
    return runs


def _fail_without_runs(path: Path, runs: Sequence[RunFile]) -> None:
    if not runs:
        _fail(f"{path}: holds no run yet (no *.jsonl with records in it)", NO_VERDICT)


def _fail_if_unreadable(run: RunFile) -> None:
    """Say before the screen opens that the only run there is cannot be shown."""
    watched = RunWatch(run)
    watched.advance()
    if watched.error:
        _fail(f"{run.path}: {watched.error}", NO_VERDICT)


def _print_snapshot(run: RunFile, columns: int, glyphs: Glyphs, rows: int | None = None) -> int:
    _print(_snapshot(run, columns, glyphs, rows))
    return 0


def _snapshot(run: RunFile, columns: int, glyphs: Glyphs, rows: int | None) -> str:
    watched = RunWatch(run)
    watched.read_all()
    if watched.error:
        _fail(f"{run.path}: {watched.error}", NO_VERDICT)
    return snapshot_text(watched, columns, rows, glyphs)


def _size(size: str) -> tuple[int, int | None]:
    if not size:
        return 100, None
    columns, _, rows = size.lower().partition("x")
    if not (columns.isdecimal() and rows.isdecimal()):
        _fail(f"--size {safe_text(size, 20)!r}: write COLUMNSxROWS, for example 120x40", USAGE)
    return max(_SMALLEST[0], int(columns)), max(_SMALLEST[1], int(rows))


def _prepare_terminal(color: str) -> None:
    """Settings that Textual reads once, when it is imported; the user's own win."""
    if os.environ.get("TERM", "dumb") == "dumb":
        _fail("TERM=dumb cannot show the microscope: use `snapshot` or `check`, or set TERM", USAGE)
    os.environ.setdefault("TEXTUAL_ANIMATIONS", "none")
    os.environ.setdefault("TEXTUAL_FPS", "15")
    if color == "never":
        os.environ["NO_COLOR"] = "1"
    elif color != "auto":
        systems = {"truecolor": "truecolor", "256": "256", "16": "standard"}
        os.environ["TEXTUAL_COLOR_SYSTEM"] = systems[color]


def _print(text: str) -> None:
    """Data on standard output. A reader that left, as ``| head`` does, changes no exit code."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(message: str) -> None:
    sys.stderr.write(f"moe-microscope: {safe_text(message, 400)}\n")


def _fail(message: str, code: int) -> NoReturn:
    _say(message)
    sys.exit(code)


if __name__ == "__main__":
    main()
