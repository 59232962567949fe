"""The contracts of the code: what needs what at run time, file sizes, words."""

import ast
import functools
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("moe_model", "microscope_tui")
SOURCES = sorted(p for name in PACKAGES for p in (ROOT / name).rglob("*.py"))
FRONTS = sorted(p for name in PACKAGES for p in (ROOT / name).rglob("__init__.pyi"))
MAX_MODULES = 96
"""Of ours, when the first table of a run log is drawn."""
NEWER_STANDARD_LIBRARY = {"compression"}  # Python 3.14; its backport is declared for older ones
MAY_NEED_TORCH = ("torch", "transformers", "numpy", "safetensors", "tokenizers", "moe_model")
FORBIDDEN_FILES = {"utils.py", "util.py", "common.py", "helpers.py", "misc.py"}
# One word per idea: what is on the left is called what is on the right.
WORDS = {
    r"\bn_experts\b": "num_experts",
    r"\bgamma\b": "bias_update_rate",
    r"\bmaxvio\b": "max_violation",
}


def fresh(code: str, *arguments: Path) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in an interpreter of its own: this one has everything imported already."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = frozenset(module_name(path) for path in SOURCES)


def inside(path: Path) -> bool:
    return path.is_relative_to(ROOT / "microscope_tui")


@functools.cache
def front(package: str) -> dict[str, str]:
    """Name → module of what a package re-exports lazily."""
    stub = ROOT / package.replace(".", "/") / "__init__.pyi"
    if not stub.exists():
        return {}
    return {
        alias.name: f"{package}.{node.module}"
        for node in ast.parse(stub.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def imported_modules(path: Path) -> set[str]:
    """Our modules that this one imports anywhere, through fronts too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            homes = front(node.module)
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                found.add(homes.get(alias.name, submodule if submodule in NAMES else node.module))
    return found


@functools.cache
def needs_torch() -> frozenset[str]:
    """Modules of the probe that import torch at their top, directly or through each other."""
    graph = {module_name(p): loaded_at_import(p) for p in SOURCES if inside(p)}
    found = {name for name, uses in graph.items() if uses & set(MAY_NEED_TORCH)}
    while more := {name for name, uses in graph.items() if uses & found} - found:
        found |= more
    may = ("microscope_tui.probe.", "microscope_tui.extensions.anatomy.")
    assert all(name.startswith(may) for name in found), found
    return frozenset(found)


def loaded_at_import(path: Path) -> set[str]:
    """What the top of a file imports: our modules by full name, others by their first word."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
            homes = front(node.module)
            found |= {homes.get(a.name, f"{node.module}.{a.name}") for a in node.names}
            found.add(node.module)
    return found


def test_the_whole_microscope_imports_without_torch() -> None:
    blocked = "; ".join(f"sys.modules[{name!r}] = None" for name in ("torch", "numpy", "moe_model"))
    modules = [module_name(p) for p in SOURCES if p.is_relative_to(ROOT / "microscope_tui")]
    modules = [name for name in modules if name not in needs_torch()]
    assert len(modules) > 40
    done = fresh(f"import sys; {blocked}; import {', '.join(modules)}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("missing", ["torch", "microscope_tui.runlog"])
def test_a_name_of_the_probe_that_needs_another_package_says_so(missing: str) -> None:
    """What is missing of our own is a broken installation, which keeps its own words."""
    code = f"import sys; sys.modules[{missing!r}] = None; from microscope_tui.probe import attach"
    first, *_, last = fresh(code).stderr.splitlines()
    assert first.startswith("Traceback")
    words = "microscope_tui.probe.attach needs torch: pip install 'moe-microscope[train]'."
    if missing != "torch":
        words = f"import of {missing} halted; None in sys.modules"
    assert last == f"ModuleNotFoundError: {words}"


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("microscope_tui", ["textual", "rich", "msgspec"]),
        ("microscope_tui.cli", ["microscope_tui.commands.console", "pathlib"]),
        ("microscope_tui.commands.watch", ["textual", "plotext", "watchdog", "cyclopts"]),
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


def test_ctrl_c_while_modules_are_imported_ends_the_program_without_a_word() -> None:
    find = "lambda name, *_: os.kill(os.getpid(), 2) if name == 'msgspec' else None"
    start = f"import os, sys, types; sys.meta_path[:0] = [types.SimpleNamespace(find_spec={find})]"
    done = fresh(f"{start}; from microscope_tui.cli import main; main(['check', '/'])")
    assert (done.returncode, done.stdout, done.stderr) == (-2, "", "")


FIRST_SCREEN = """
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
        await pilot.pause()
        ours = [m for name, m in sys.modules.items() if name.split(".")[0] == "microscope_tui"]
        types = {t for m in ours for t in vars(m).values() if isinstance(t, type)}
        print(len(ours), *(t.__name__ for t in types if t.__module__.startswith("microscope_tui")
                           and "__dataclass_fields__" in vars(t)))

asyncio.run(main())
"""


def test_the_first_screen_of_a_run_log_loads_few_modules(tmp_path: Path) -> None:
    demo = [sys.executable, "-m", "microscope_tui.cli", "demo", "-o", str(tmp_path / "log")]
    subprocess.run(demo, cwd=ROOT, check=True, capture_output=True)
    done = fresh(FIRST_SCREEN, tmp_path / "log")
    assert done.returncode == 0, done.stderr
    modules, *dataclasses = done.stdout.split()
    assert int(modules) <= MAX_MODULES
    assert set(dataclasses) <= {"_State", "_Saved"}, "a dataclass costs 0.3 ms, a Struct nothing"


def test_a_file_opens_with_what_it_is() -> None:
    for path in [*SOURCES, ROOT / "train.py"]:
        assert path.name not in FORBIDDEN_FILES
        assert ast.get_docstring(ast.parse(path.read_bytes())), path


def test_no_module_imports_itself_in_a_circle() -> None:
    """Imports for types alone count: a circle means that two files are one subject."""
    graph = {module_name(path): imported_modules(path) for path in SOURCES}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " → ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for other in sorted(graph[name] & graph.keys()):
                visit(other, (*trail, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


@pytest.mark.parametrize("front", FRONTS, ids=lambda p: module_name(p.with_suffix(".py")))
def test_every_name_of_a_front_is_there(front: Path) -> None:
    package = importlib.import_module(module_name(front.with_suffix(".py")))
    assert not [name for name in dir(package) if not hasattr(package, name)]


def test_one_word_per_idea() -> None:
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        for wrong, right in WORDS.items():
            assert not re.search(wrong, text), f"{path}: call it {right}"


def test_every_third_party_import_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["parquet"]]
    declared = {re.split(r"[<>=\[;.]", line)[0] for line in needed}
    viewer = {p for p in SOURCES if p.is_relative_to(ROOT / "microscope_tui")}
    viewer = {p for p in viewer if module_name(p) not in needs_torch()}
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
