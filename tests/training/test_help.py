"""What the command lines say of themselves, and how soon: without torch, with true numbers."""

import re
import subprocess
import sys

import pytest

from moe_model import PRESETS, version
from moe_model.training import help as help_module
from moe_model.training.options import RUN_DEFAULTS
from tests.forked import ROOT, ForkServer

BLOCKED = (
    "import sys, runpy\n"
    "sys.modules['torch'] = None\n"
    "sys.argv = ['train.py', *sys.argv[1:]]\n"
    "runpy.run_path('train.py', run_name='__main__')"
)


def python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def without_torch(*words: str) -> subprocess.CompletedProcess[str]:
    return python("-c", BLOCKED, *words)


def test_a_viewer_without_torch_is_told_what_to_install() -> None:
    done = without_torch("--steps", "1")
    assert done.returncode == 1
    assert "needs pip install '.[train]'" in done.stderr
    assert "torch" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("module", "missing"),
    [
        ("moe_model.generate", "torch"),
        ("moe_model.huggingface", "torch"),
        ("moe_model.upcycle", "torch"),
        ("moe_model.upcycle", "transformers"),
    ],
)
def test_the_other_commands_say_in_one_line_what_to_install(module: str, missing: str) -> None:
    code = (
        f"import sys, runpy; sys.modules[{missing!r}] = None; sys.argv = ['x', 'a', 'b']; "
        f"runpy.run_module({module!r}, run_name='__main__')"
    )
    done = python("-c", code)
    assert (done.returncode, done.stdout) == (64, "")
    assert done.stderr == (
        f"python -m {module}: needs pip install 'moe-microscope[train]': {missing} cannot be "
        f"imported by {sys.executable}\n"
    )


def test_without_torch_help_shows_what_most_runs_need_and_help_all_the_rest() -> None:
    assert without_torch("--version").stdout == f"{version()}\n"
    short, long = (without_torch(flag) for flag in ("--help", "--help-all"))
    assert (short.returncode, long.returncode) == (0, 0), short.stderr + long.stderr
    for flag in help_module.COMMON:
        assert re.search(rf"{flag}\b", short.stdout), flag
    for flag in ("--router-noise", "--model.hidden_size", "--grad-accum"):
        assert flag not in short.stdout
        assert flag in long.stdout
    assert len(short.stdout.splitlines()) <= 50 < len(long.stdout.splitlines()) / 2
    for page in (short, long):
        assert page.stdout.startswith("Usage: python train.py")
        assert page.stdout.index("python train.py --run first") < page.stdout.index("╭─")


def test_the_table_of_presets_is_true() -> None:
    found = re.findall(r"^ +(\S+) +(.*?) *$", without_torch("--help").stdout, re.MULTILINE)
    table = {name: re.split("  +", rest) for name, rest in found if name in PRESETS}
    assert set(table) == set(PRESETS)
    assert table["tiny"] == ["4.7 M", "2.3 M", "1,500", "75 MB", "56 MB"]
    for name, (_, _, steps, _, _) in table.items():
        assert steps == f"{RUN_DEFAULTS[name]['steps']:,}"
    assert table["deepseek-v3"] == ["671 B", "38 B", "10,000", "10.9 TB", "8.2 TB"], "as published"


@pytest.mark.parametrize(
    "command",
    [
        *(["-m", f"moe_model.{name}"] for name in ("generate", "huggingface", "upcycle")),
        ["-m", "moe_model.huggingface", "import"],
    ],
    ids=" ".join,
)
def test_every_command_of_the_model_prints_its_version_and_a_page_of_help(
    fork_server: ForkServer, command: list[str]
) -> None:
    program = fork_server.start(*command, "--version")
    output, errors = program.communicate()
    assert (program.returncode, output) == (0, f"{version()}\n"), errors
    output, _ = fork_server.start(*command, "--help", COLUMNS="80").communicate()
    assert output.startswith(f"Usage: python {' '.join(command)}")
    assert len(output.splitlines()) <= 50
