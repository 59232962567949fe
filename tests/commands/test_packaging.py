"""What a release holds: every module in the wheel, every file in the sdist, and the commit."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.forked import ROOT

PACKAGES = ("microscope_tui/", "moe_model/")


GIT = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, check=False)


def output_of(*command: str | Path, folder: Path, **more: Any) -> str:
    return subprocess.run(command, cwd=folder, check=True, stdout=-1, text=True, **more).stdout


def build(source: Path, folder: Path, *targets: str) -> list[str]:
    output_of(sys.executable, "-m", "hatchling", "build", *targets, "-d", folder, folder=source)
    with zipfile.ZipFile(*folder.glob("*.whl")) as wheel:
        wheel.extractall(folder / "site")
        return [name for name in wheel.namelist() if ".dist-info/" not in name]


# What a user's folder holds beside the code: git ignores some of it, hatch less, and some neither.
OF_THE_USER = (
    "logs/demo/metrics.jsonl",
    "logs/demo-probe/routing.bin",
    "logs/demo.console.txt",
    "checkpoints/demo/step-00000150/model.safetensors",
    "scratch/demo/latest/model.safetensors",
    "corpus.txt",
)


def used_checkout(folder: Path) -> tuple[Path, set[str]]:
    """A copy of the checkout in which a user trained, and the names of the files of the code."""
    copy = folder / "checkout"
    output_of("git", "clone", "-q", "--shared", "--no-checkout", ROOT, copy, folder=folder)
    output_of("git", "reset", "-q", folder=copy)
    listed = output_of("git", "ls-files", folder=ROOT).splitlines()
    files = {name for name in listed if (ROOT / name).is_file()}
    for name in files:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name)
    for name in OF_THE_USER:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text("of the user")
    return copy, files


@pytest.mark.skipif(GIT.returncode != 0, reason="not a git checkout")
def test_wheel_and_sdist_hold_all_and_nothing_else_and_know_their_commit(tmp_path: Path) -> None:
    checkout, files = used_checkout(tmp_path)
    modules = {name for name in files if name.startswith(PACKAGES)} | {"microscope_tui/commit.txt"}
    assert set(build(checkout, tmp_path / "built")) == modules
    [archive] = (tmp_path / "built").glob("*.tar.gz")
    with tarfile.open(archive) as sdist:
        sdist.extractall(tmp_path, filter="data")
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert names - {"PKG-INFO"} == files | modules
    unpacked = tmp_path / archive.name.removesuffix(".tar.gz")
    assert set(build(unpacked, tmp_path / "rebuilt", "-t", "wheel")) == modules
    command = [sys.executable, "-m", "microscope_tui.cli", "--version"]
    places = (checkout, tmp_path / "built/site", tmp_path / "rebuilt/site")
    shown = {output_of(*command, folder=p, env=os.environ | {"PYTHONPATH": str(p)}) for p in places}
    assert len(shown) == 1, "the same where it runs from git, is built, and is built once more"
    assert output_of("git", "rev-parse", "--short=12", "HEAD", folder=ROOT).strip() in shown.pop()


def test_a_shell_completes_commands_and_options(tmp_path: Path) -> None:
    script = tmp_path / "completion"
    install = ["--install-completion", "--shell", "bash", "-o", str(script)]
    environment = os.environ | {"HOME": str(tmp_path)}
    output_of(sys.executable, "-m", "microscope_tui.cli", *install, folder=ROOT, env=environment)
    asks = f". {script}; COMP_WORDS=(moe-microscope check --j) COMP_CWORD=2; _moe_microscope"
    assert output_of("bash", "-c", f"{asks}; echo $COMPREPLY", folder=tmp_path) == "--json\n"
