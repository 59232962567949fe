"""The house stays as it was drawn: who needs what at run time, file sizes, words."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("moe_model", "microscope_tui")
SOURCES = sorted(p for name in PACKAGES for p in (ROOT / name).rglob("*.py"))
MAX_FILE_LINES = 300
LONGER = {"moe_model/fused.py": 540}
"""Every hand-written backward pass is in one file, beside the definition it must equal."""
MAX_FUNCTION_LINES = 60
NEWER_STANDARD_LIBRARY = {"compression"}  # Python 3.14; its backport is declared for older ones
NEEDS_TORCH = frozenset(
    f"microscope_tui.probe.{name}"
    for name in (
        "attaching", "batch", "calls", "checkpoints", "complaints", "earlier", "families",
        "finding", "frameworks", "gradients", "header", "hub", "losses", "machine", "probe",
        "probing", "published", "ranks", "recording", "same_weights", "sample_trace", "settings",
        "sites", "stepline",
        "stepsums", "subject", "tables", "tally", "tracer", "trainer_callback", "watching",
        "windows",
    )
)  # fmt: skip
"""What hooks into a model; nothing else of the microscope imports these when it is imported."""
FORBIDDEN_FILES = {"utils.py", "util.py", "common.py", "helpers.py", "misc.py"}
# One word per idea: what is on the left is called what is on the right.
WORDS = {
    r"\bn_experts\b": "num_experts",
    r"\bgamma\b": "bias_update_rate",
    r"\bmaxvio\b": "max_violation",
}


def fresh(code: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in an interpreter of its own: this one has everything imported already."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60
    )


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_the_whole_microscope_imports_without_torch() -> None:
    blocked = "; ".join(f"sys.modules[{name!r}] = None" for name in ("torch", "numpy", "moe_model"))
    modules = [module_name(p) for p in SOURCES if p.is_relative_to(ROOT / "microscope_tui")]
    modules = [name for name in modules if name not in NEEDS_TORCH]
    assert len(modules) > 40
    done = fresh(f"import sys; {blocked}; import {', '.join(modules)}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("microscope_tui", ["textual", "rich", "msgspec"]),
        ("microscope_tui.cli", ["textual", "plotext", "watchdog"]),
        ("microscope_tui.probe.recorder", ["textual", "rich", "cyclopts"]),
        ("microscope_tui.app.microscope", ["plotext"]),
        ("moe_model", ["torch"]),
        ("moe_model.config", ["microscope_tui", "textual"]),
    ],
)
def test_imports_load_no_more_than_they_need(module: str, unwanted: list[str]) -> None:
    done = fresh(f"import sys, {module}; print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    assert not set(done.stdout.split()) & set(unwanted)


@pytest.mark.parametrize(
    "path", [*SOURCES, ROOT / "train.py"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_a_file_is_small_and_says_what_it_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert path.name not in FORBIDDEN_FILES
    most = LONGER.get(str(path.relative_to(ROOT)), MAX_FILE_LINES)
    assert len(text.splitlines()) <= most
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a file opens with what it is"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, node.name


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_one_word_per_idea(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for wrong, right in WORDS.items():
        assert not re.search(wrong, text), f"call it {right}"


def test_every_third_party_import_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["parquet"]]
    declared = {re.split(r"[<>=\[;.]", line)[0] for line in needed}
    viewer = {p for p in SOURCES if p.is_relative_to(ROOT / "microscope_tui")}
    viewer = {p for p in viewer if module_name(p) not in NEEDS_TORCH}
    for path in viewer:
        for name in imported(path):
            standard = name in sys.stdlib_module_names or name in NEWER_STANDARD_LIBRARY
            known = standard or name in (*declared, "microscope_tui")
            assert known, f"{path.relative_to(ROOT)} imports {name}"
    used = {name for path in viewer for name in imported(path)}
    assert declared <= used, f"declared but never imported: {declared - used}"


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names
