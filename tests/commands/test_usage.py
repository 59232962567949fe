"""A mistake on the command line exits with 64, prints one line, and never a verdict."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.cli import COMMANDS
from microscope_tui.commands.console import USAGE, print_wrapped
from microscope_tui.commands.parser import bytes_option
from microscope_tui.diagnosis import RULES
from tests.conftest import Call


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("check A B", "B: one argument too many; name one run, or the folder of several"),
        ("a b c", "b, c: one argument too many"),
        ("keys a", "a: one argument too many (see moe-microscope keys --help)"),
        ("snaphot", "snaphot: no such command, file or folder; did you mean `snapshot`?"),
        ("chekc logs --json", "did you mean `check`?"),
        ("help", "did you mean `--help`?"),
        ("check . --wrong", "Unknown option"),
        ("check . --fail-on never", "never"),
        ("check . --since-step -1", "the first step of a run is 1"),
        ("check . --new-only", "add --since-step N"),
        ("check . --ignore COLAPSE", "no such rule; there are METER, STILL, LINT"),
        ("check . --notify-command true", "add --follow"),
        ("check . --follow --notify-command=", "is empty: give a command"),
        ("check . --follow --all", "leave --all out"),
        ("check . --follow --wait -1", "--wait -1: write seconds, 0 for none"),
        ("check . --wait 9", "--wait 9 waits for a run to resume: add --follow"),
        ("check . --format-only --wait 9 --ignore DEAD", "remove --ignore, --wait"),
        *(
            (f"check . --format-only {more}", f"does not judge runs: remove {more.split()[0]}")
            for more in ("--since-step 5", "--fail-on crit", "--follow", "--profile eval")
        ),
        ("check . --format-only --baseline . --config x.toml", "remove --baseline, --config"),
        ("check . --source excel", "no such format; there are"),
        ("check . --map share", "write QUANTITY=REGEX"),
        ("check . --top-k 0", "--top-k 0: write a number from 1 up"),
        ("check . --config none.toml", "no such file; name a TOML file"),
        ("snapshot . --size wide", "write COLUMNSxROWS"),
        ("snapshot . --step many", "--step"),
        ("snapshot RUN --step 0", "the first step of a run is 1"),
        ("snapshot RUN --screen layer --against RUN", "compares nothing"),
        ("snapshot RUN --animate 3:3 -o x.svg", "needs A:B with B after A"),
        ("snapshot RUN --animate 1:3", "needs A:B with B after A, -o NAME.svg"),
        ("snapshot RUN --animate 1:3 -o x.svg --screen map", "no --screen, no --step"),
        ("snapshot RUN --animate 1:3 -o x.svg --step 2", "no --screen, no --step"),
        ("snapshot RUN --screen mismatch --format json", "shows no step of a run"),
        ("coverage RUN --min-tokens 0", "--min-tokens 0: write a number from 1 up"),
        ("coverage RUN --steps 7", "write A:B"),
        ("coverage RUN --steps 9:3", "write A:B"),
        ("coverage -", "save it to a file first"),
        ("export -", "save it to a file first"),
        ("export RUN --format xlsx", "xlsx"),
        ("export RUN --format parquet", "name a file with -o"),
        ("export RUN -o /nowhere/at/all.csv", "cannot be written"),
        ("import RUN logs", "name files of another tool, or add --merge"),
        ("mismatch .", "requires"),
        ("mismatch . . --max-share 2", "write a share from 0 to 1"),
        ("explain colapse", f"colapse: no such rule; there are {', '.join(RULES)}"),
        ("demo --seed x", "--seed"),
        ("demo --scenario nonsense", "choose one of healthy"),
        ("doctor --nonsense", "Unknown option"),
        ("- --spool x", "write a size from 1MB up, for example 500MB, or 0 for none"),
        ("- --spool -1", "--spool"),
        (". --memory 0", "--memory '0': write a size from 1MB up, for example 128MB"),
    ],
)
def test_a_usage_error_exits_with_64_and_one_line(
    call: Call, scenario: Any, monkeypatch: Any, tmp_path: Path, arguments: str, why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    run = scenario("healthy", routers=2, steps=5) if "RUN" in arguments else None
    code, out, err = call(*(run if word == "RUN" else word for word in arguments.split()))
    assert (code, out) == (USAGE, "")
    assert err.startswith("moe-microscope: ")
    assert err.count("\n") == 1
    assert why in err


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(("1MB", 1 << 20), ("64mb", 64 << 20), ("2G", 2 << 30), ("1.5 GiB", 3 << 29)),
        *(("2048k", 2 << 20), ("1048576", 1 << 20), ("", 7)),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert bytes_option("--memory", text, "128MB", 7) == size


@pytest.mark.parametrize("text", ["0", "1048575", "1023kB", "-5", "64 apples", "MB", "1e9", "nan"])
def test_other_sizes_are_usage_errors(text: str) -> None:
    with pytest.raises(SystemExit) as end:
        bytes_option("--memory", text, "128MB", 7)
    assert end.value.code == USAGE
    assert bytes_option("--spool", "0", "500MB", 7, least=0) == 0


def bad_inputs(folder: Path) -> Sequence[tuple[str, Path]]:
    (folder / "empty").mkdir()
    (folder / "text.txt").write_text("just a text\n")
    for name, line in (
        ("version", {"kind": "run", "format_version": 7, "model": {"layers": []}}),
        ("headless", {"kind": "step", "step": 1}),
    ):
        (folder / name).mkdir()
        (folder / name / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    return [
        ("no such file", folder / "missing"),
        ("contains no run", folder / "empty"),
        ("not a run log", folder / "text.txt"),
        ("format_version is 7", folder / "version"),
        ("no steps in the log", folder / "headless"),
    ]


@pytest.mark.parametrize("command", ["check", "snapshot", "export", "coverage", ""])
def test_bad_input_exits_with_3_and_is_named(call: Call, tmp_path: Path, command: str) -> None:
    for why, path in bad_inputs(tmp_path):
        if command != "check" and why == "no steps in the log":
            continue  # a run that has not begun can be looked at
        code, out, err = call(*([command] if command else []), path)
        assert code == 3, why
        assert why in out + err
        assert "Traceback" not in err
    code, _, err = call("check", "--format-only", tmp_path / "empty")
    assert (code, "contains no *.jsonl" in err) == (3, True)


@pytest.mark.parametrize(
    "arguments", ["check", "check --json", "snapshot", "snapshot --screen runs", ""]
)
def test_without_a_path_the_newest_run_in_logs_is_read(
    call: Call, scenario: Any, monkeypatch: pytest.MonkeyPatch, arguments: str
) -> None:
    run = scenario("collapse", routers=3, steps=450)
    monkeypatch.chdir(run.parent)  # which has no folder "logs" yet
    words = arguments.split()
    code, _, err = call(*words)
    assert code == 3
    assert "logs: no such file or folder" in err
    run.rename(run.parent / "logs")
    code, out, err = call(*words)
    assert ("1 with alerts" if "runs" in words else "Router collapse in L3") in out, err
    assert code == (2 if "check" in words else 0)
    assert ("no terminal here" in err) == (not words)


def test_in_an_empty_folder_it_waits_and_shows_how_to_log(shell: Any, tmp_path: Path) -> None:
    screen = shell(f"cd {tmp_path}; $MICROSCOPE")
    screen.wait_for("waiting for a run in logs")
    screen.wait_for("probe.step(loss=loss)")
    assert "python train.py" in screen.text
    assert 'probe = attach(model, "logs/mine")' in screen.text
    screen.press("q")
    assert screen.exit_code() == 0


def test_a_file_is_never_taken_for_a_misspelled_command(
    call: Call, scenario: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = scenario("healthy", routers=2, steps=5)
    run.rename(run.parent / "chek")
    monkeypatch.chdir(run.parent)
    assert call("chek")[0] == 0
    assert call("runs/check")[0] == 3, "a path is not a word"


@pytest.fixture
def page(call: Call, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What a command with ``--help`` or ``--help-all`` prints in 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    return lambda command, flag="--help": call(*command.split(), flag)[1]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_a_screen_and_has_examples_that_work(call: Call, page: Any, command: str) -> None:
    shown = page(command)
    assert shown.startswith("Usage: moe-microscope")
    assert len(shown.splitlines()) <= 50
    assert '[default: ""]' not in shown
    assert "[default: False]" not in shown
    examples, _, panels = shown.partition("╭")
    known = panels + page(command, "--help-all")
    for option in re.findall(r" (--?[a-z-]+)", examples):
        assert re.search(rf"│ .*{option}\b", known), option
    if command not in ("sources", "keys", "doctor"):
        assert f"\n  moe-microscope {command}" in examples
    assert call(*command.split(), "--version")[1][0].isdecimal()


def test_help_begins_with_what_most_need(page: Callable[..., str]) -> None:
    commands = re.findall(r"^│ (\S+) ", page(""), re.MULTILINE)
    assert commands[:3] == ["check", "snapshot", "probe"]
    assert commands[len(COMMANDS) :][:3] == ["--help", "--help-all", "--version"]
    for command in ("", "check", "snapshot", "export", "import", "coverage"):
        *_, last = page(command).split("╭─ ")
        assert last.startswith("Files of other tools"), command
        assert {"--source", "--map", "--num-experts", "--top-k"} <= set(last.split())


@pytest.mark.parametrize(
    ("command", "hidden"),
    [
        *(("", "--memory 1MB"), ("", "--spool 1MB"), ("demo", "--seed 1")),
        *((name, "--pipeline-parallel 2") for name in ("", "check", "import")),
    ],
)
def test_what_few_need_is_behind_help_all_and_works(
    call: Call, page: Callable[..., str], command: str, hidden: str
) -> None:
    option = hidden.split()[0]
    assert option not in page(command)
    assert "--help-all shows" in page(command)
    assert option in page(command, "--help-all")
    assert "Unknown option" not in call(*command.split(), *hidden.split())[2]


def test_in_a_terminal_lines_are_wrapped_beside_their_label(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "run: healthy\n    why   one two three four five\n  note: six seven eight"
    monkeypatch.setenv("COLUMNS", "20")
    print_wrapped(text)
    assert capsys.readouterr().out == text + "\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    print_wrapped(text)
    assert capsys.readouterr().out.splitlines()[1:] == [
        "    why   one two", "          three four", "          five",
        "  note: six seven", "  eight",
    ]  # fmt: skip
