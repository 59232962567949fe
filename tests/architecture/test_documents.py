"""What the documents promise: their links lead somewhere, their commands exist, their code runs."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import bench

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXPERIMENTS = (ROOT / "docs/experiments.md").read_text(encoding="utf-8")
ROWS, RESULTS = bench.read_rows(), json.loads(bench.RESULTS.read_text(encoding="utf-8"))
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FOLDERS = ("microscope_tui", "moe_model", "tests", "benchmarks", "examples", "docs")
FILES = [*ROOT.glob("*"), *(path for name in FOLDERS for path in (ROOT / name).rglob("*"))]


def test_the_readme_fits_one_page() -> None:
    assert len(README) <= 8_000


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


def test_the_page_of_benchmarks_and_the_readme_are_as_make_bench_writes_them() -> None:
    assert bench.PAGE.read_text(encoding="utf-8") == bench.page(ROWS, RESULTS), "run make bench"
    assert bench.filled(README, ROWS, RESULTS) == README, "run make bench"


def test_a_number_in_the_table_of_the_readme_is_filled_in_or_in_the_experiments() -> None:
    phrases = [
        phrase.format(**RESULTS[row.name]["numbers"]) for row in ROWS for phrase in row.readme
    ]
    table = README.partition("| what | result | command |")[2].partition("\n\n")[0]
    others = [row for row in table.splitlines()[2:] if not any(part in row for part in phrases)]
    number = re.compile(r"\d[\d,.]*\d|\d")
    wanted = set(number.findall(" ".join(cell for row in others for cell in row.split("|")[1:3])))
    assert len(wanted) > 3
    missing = wanted - set(number.findall(EXPERIMENTS))
    assert not missing


def test_what_make_bench_runs_is_not_also_in_the_experiments() -> None:
    twice = [row.command for row in ROWS if f"`{row.command}`" in EXPERIMENTS]
    assert not twice


def test_every_file_and_name_in_contributing_exists() -> None:
    text = re.sub(r"```.*?```|## Style.*?\n## ", "", CONTRIBUTING, flags=re.DOTALL)
    quoted = re.findall(r"`([^`]+)`", text)
    files = {name for name in quoted if re.fullmatch(r"[a-z_/]+(?:\.pyi?|\.md|\.toml|/)", name)}
    paths = [f"/{path.relative_to(ROOT)}{'/' * path.is_dir()}" for path in FILES]
    missing = {name for name in files if not any(path.endswith(f"/{name}") for path in paths)}
    assert missing == {"sources/table.py"}, "the worked example alone is not in the repository"
    sources = [path for path in FILES if path.suffix in (".py", ".toml")]
    words = set(re.findall(r"\w+", "\n".join(path.read_text("utf-8") for path in sources)))
    names = {found[0] for name in quoted if (found := re.match(r"_?[A-Za-z]\w+(?=$|\()", name))}
    assert len(names) > 20
    unknown = names - words
    assert not unknown


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
        [sys.executable, "-m", "microscope_tui.cli", "check", "logs/counts"],
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
