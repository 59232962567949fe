"""What the documents promise: their links lead somewhere, their commands exist, their code runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_fits_one_page() -> None:
    assert len(README) <= 7_200


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_to_a_file(document: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
    missing = [target for target in targets if not (document.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_benchmark_that_is_named_exists(document: Path) -> None:
    named = set(
        re.findall(r"python -m (benchmarks\.[a-z_]+)", document.read_text(encoding="utf-8"))
    )
    assert not [name for name in named if not _module(name)]


def test_the_recorder_example_of_the_readme_logs_a_collapse_that_check_finds(
    tmp_path: Path,
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (code,) = [block for block in blocks if "RunRecorder" in block]
    printed = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert printed.splitlines() == ["CRIT COLLAPSE: Router collapse in L2 since step 1"]
    checked = subprocess.run(
        [sys.executable, "-m", "microscope_tui.cli", "check", "logs/mine"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, "collapse in L2" in checked.stdout) == (2, True)


def test_every_option_of_a_documented_training_command_exists() -> None:
    known = subprocess.run(
        [sys.executable, "train.py", "--help-all"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for command in re.findall(
            r"^(?:torchrun .*-- )?(?:python )?train\.py .*$", text, re.MULTILINE
        ):
            words = shlex.split(command.partition("train.py")[2], comments=True)
            for option in (word for word in words if word.startswith("--")):
                assert option in known or option.startswith("--model."), (document.name, command)


def _module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").exists() or (path / "__main__.py").exists()
