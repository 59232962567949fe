"""Without the folder of an extension the rest runs, and names what is not there."""

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
        self.run(0, "demo", "-o", "runs")

    def run(self, code: int, *words: str) -> str:
        """What a command prints; it ends with ``code``."""
        return self.python(code, "-m", "microscope_tui", *words)

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
    shown = here.run(0, "--help") + here.run(0, "keys") + here.run(0, "sources")
    assert "COLLAPSE" in here.run(2, "check", "runs")
    assert "experts effective" in here.run(0, "snapshot", "runs")
    assert here.python(0, "-c", MAIN_SCREEN, "runs") == "LayerScreen\n"
    for name in gone:
        command, screen, source, file = OF[name]
        wanted = f"this installation has no {name}"
        assert command == "" or f"│ {command} " not in shown
        assert screen == "" or f"{screen} screen" not in shown
        assert source == "" or f"{source} " not in shown
        if command:
            assert wanted in here.run(64, command, "runs")
        if screen:
            assert wanted in here.run(64, "snapshot", "runs", "--screen", screen)
        if source:
            assert wanted in here.run(64, "check", "runs", "--source", source)
            (tmp_path / file).write_bytes(b"anything")
            assert wanted in here.run(64, "check", file)


def test_keys_of_a_screen_that_is_not_there_only_warn(tmp_path: Path) -> None:
    here = Installation(tmp_path, ["anatomy"])
    config = tmp_path / ".config/moe-microscope/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('[keys]\ntoken.next = "n"\n"screen.tokens" = "T"\n')
    shown = here.run(0, "keys")
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
