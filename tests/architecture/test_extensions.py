"""Without the folder of an extension the rest runs, and names what is not there."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXTENSIONS = sorted(
    path.parent.name for path in ROOT.glob("microscope_tui/extensions/*/__init__.py")
)
OF = {  # what only this extension has: commands, screens, a source and a file of it
    "anatomy": ("coverage", "tokens", "routed-experts", "rollout_3.pt"),
    "dumps": ("", "", "megatron", "imatrix.gguf"),
    "placement": ("placement", "placement", "", ""),
}
MAIN_SCREEN = """
import asyncio, sys
from pathlib import Path
from microscope_tui.app.microscope import Microscope
from microscope_tui.app.remembered import begin
from microscope_tui.watch import Fleet

async def main():
    app = Microscope(begin(Fleet(Path(sys.argv[1]))))
    async with app.run_test(size=(120, 40)) as pilot:
        while not (app.session.watch and app.session.watch.complete):
            await pilot.pause(0.02)
        await pilot.press("question_mark", "escape", "7", "9", "d", "2")
        await pilot.pause()
        print(type(app.screen).__name__)

asyncio.run(main())
"""


COMMANDS = """
import contextlib, io, json, sys
from microscope_tui.cli import main

for words in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main(words)
            code = 0
        except SystemExit as end:
            code = end.code or 0
    print(json.dumps([code, said.getvalue()]))
"""
"""Several commands by one interpreter: each start of it takes a third of a second."""


class Installation:
    """A copy of the program without some extensions, and a run to look at."""

    def __init__(self, folder: Path, without: list[str]) -> None:
        self.folder = folder
        shutil.copytree(
            ROOT / "microscope_tui",
            folder / "microscope_tui",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        for name in without:
            shutil.rmtree(folder / "microscope_tui/extensions" / name)
        self.run(0, "demo -o runs")

    def run(self, code: int, *commands: str) -> list[str]:
        """What each command prints; all end with ``code``."""
        words = json.dumps([command.split() for command in commands])
        ended = [json.loads(line) for line in self.python(0, "-c", COMMANDS, words).splitlines()]
        assert [one[0] for one in ended] == [code] * len(commands), ended
        assert "Traceback" not in str(ended)
        return [one[1] for one in ended]

    def python(self, code: int, *words: str) -> str:
        """The same of Python itself."""
        done = subprocess.run(
            [sys.executable, *words],
            cwd=self.folder,
            env={"PYTHONPATH": str(self.folder), "HOME": str(self.folder), "PATH": ""},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr


@pytest.mark.parametrize("without", [*EXTENSIONS, "all"])
def test_the_rest_runs_without_an_extension_and_names_it(without: str, tmp_path: Path) -> None:
    gone = EXTENSIONS if without == "all" else [without]
    here = Installation(tmp_path, gone)
    *shown, snapshot = here.run(0, "--help", "keys", "sources", "snapshot runs")
    assert "experts effective" in snapshot
    assert "COLLAPSE" in here.python(2, "-m", "microscope_tui", "check", "runs")
    assert here.python(0, "-c", MAIN_SCREEN, "runs") == "LayerScreen\n"
    refused: dict[str, str] = {}
    for name in gone:
        command, screen, source, file = OF[name]
        wanted = f"this installation has no {name}"
        assert command == "" or f"│ {command} " not in shown[0]
        assert screen == "" or f"{screen} screen" not in shown[1]
        assert source == "" or f"{source} " not in shown[2]
        if command:
            refused[f"{command} runs"] = wanted
        if screen:
            refused[f"snapshot runs --screen {screen}"] = wanted
        if source:
            refused[f"check runs --source {source}"] = refused[f"check {file}"] = wanted
            (tmp_path / file).write_bytes(b"anything")
    for said, wanted in zip(here.run(64, *refused), refused.values(), strict=True):
        assert wanted in said


def test_keys_of_a_screen_that_is_not_there_only_warn(tmp_path: Path) -> None:
    here = Installation(tmp_path, ["anatomy"])
    config = tmp_path / ".config/moe-microscope/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('[keys]\ntoken.next = "n"\n"screen.tokens" = "T"\n')
    (shown,) = here.run(0, "keys")
    assert "[keys] token.next: its screen is not installed" in shown
    assert "[keys] screen.tokens: its screen is not installed" in shown


def test_a_training_runs_without_anatomy(tmp_path: Path) -> None:
    here = Installation(tmp_path, ["anatomy"])
    shutil.copytree(
        ROOT / "moe_model", tmp_path / "moe_model", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(ROOT / "train.py", tmp_path)
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question " * 400)
    options = "--preset tiny --steps 3 --seq-len 16 --batch-size 2 --data text.txt --run r"
    shown = here.python(0, "train.py", *options.split(), "--trace-sample")
    assert "no trace: this installation has no anatomy" in shown
