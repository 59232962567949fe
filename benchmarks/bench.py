"""Run the benchmarks of rows.toml that have no result yet, and write docs/benchmarks.md.

    make bench                         those that are missing, or were named and not reached
    make bench ONLY="big_log busy"     these again

Results are saved in docs/benchmarks.json one by one: ``make bench`` continues where it was stopped.
README.md gets its numbers from them. At the end: how many commits have changed what a row measures.
"""

import argparse
import datetime
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.machine import machine

ROOT = Path(__file__).resolve().parents[1]
ROWS = Path(__file__).with_name("rows.toml")
RESULTS, PAGE = ROOT / "docs/benchmarks.json", ROOT / "docs/benchmarks.md"
README = ROOT / "README.md"
HEAD = """# Benchmarks

`make bench` writes this page from [benchmarks.json](benchmarks.json): what each command printed, on
which machine, when and of which commit (`+`: with changes). `make bench ONLY=NAME` repeats a row.
Nothing here was measured on a GPU.
"""
TARGET_MISSED = 1  # the exit code of a benchmark that misses a target; its result counts too

Results = dict[str, dict[str, Any]]
"""By row; ``again`` is in those that were named and not reached."""


@dataclass(frozen=True, slots=True)
class Row:
    """One benchmark; ``rows.toml`` explains the fields."""

    name: str
    title: str
    command: str
    about: str
    measures: list[str]
    numbers: dict[str, str] = field(default_factory=dict)
    readme: list[str] = field(default_factory=list)


def main() -> int:
    """Run what is wanted and write the documents; 1 if a benchmark failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="rows to run again", metavar="NAME")
    named = parser.parse_args().names
    rows, results, failed = read_rows(), json.loads(RESULTS.read_text(encoding="utf-8")), 0
    names = [row.name for row in rows]
    if unknown := sorted(set(named) - set(names)):
        parser.error(f"no row {', '.join(unknown)}; the rows are {', '.join(names)}")
    for name in set(named) & set(results):
        results[name]["again"] = True
    save(results)
    for row in rows:
        done = row.name in results and "again" not in results[row.name]
        if done or (named and row.name not in named):
            continue
        print(f"== {row.name}: {row.command}", flush=True)
        try:
            results[row.name] = measure(row)
            save(results)
        except ValueError as problem:
            failed = 1
            print(f"{row.name} is not recorded: {problem}", flush=True)
    PAGE.write_text(page(rows, results), encoding="utf-8")
    README.write_text(filled(README.read_text(encoding="utf-8"), rows, results), encoding="utf-8")
    print(*(age(row, results) for row in rows), sep="\n")
    return failed


def read_rows() -> list[Row]:
    """The benchmarks, in the order of the page."""
    table = tomllib.loads(ROWS.read_text(encoding="utf-8"))
    return [Row(name, **fields) for name, fields in table.items()]


def save(results: Results) -> None:
    """Write beside and rename: an interrupted write leaves the old file."""
    beside = RESULTS.with_suffix(".new")
    beside.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    beside.replace(RESULTS)


def measure(row: Row) -> dict[str, Any]:
    """Run a benchmark and return its result; ValueError if its output lacks a number."""
    versions = f"textual {version('textual')}, torch {version('torch')}"
    result = {"date": datetime.date.today().isoformat(), "commit": commit()}
    result |= {"machine": machine(), "versions": versions, "output": printed_by(row.command)}
    found = {name: re.findall(pattern, result["output"]) for name, pattern in row.numbers.items()}
    if lacking := [name for name, values in found.items() if not values]:
        raise ValueError(f"its output lacks {', '.join(lacking)}; see benchmarks/rows.toml")
    return result | {"numbers": {name: float(values[0]) for name, values in found.items()}}


def printed_by(command: str) -> str:
    """The lines of a benchmark, shown as they come; ValueError if it failed."""
    words = [sys.executable, *shlex.split(command)[1:]]
    settings = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    output = ""
    # Not a pipe: nothing reads the errors before the benchmark ends.
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": errors, "encoding": "utf-8"}
        with subprocess.Popen(words, cwd=ROOT, env=settings, **pipes) as process:
            for line in process.stdout or ():
                print(line, end="", flush=True)
                output += line
        errors.seek(0)
        complaint = errors.read()
    if process.returncode not in (0, TARGET_MISSED) or "Traceback (most recent" in complaint:
        raise ValueError(f"exit code {process.returncode}\n{complaint[-4000:]}")
    return output.strip("\n")


def commit() -> str:
    """The commit that is measured, with ``+`` if files of the program differ from it."""
    program = ("microscope_tui", "moe_model", "train.py", "benchmarks")
    return git("rev-parse", "--short=8", "HEAD") + "+" * bool(git("diff", "HEAD", "--", *program))


def git(*words: str) -> str:
    """What git prints; nothing where it fails."""
    asked = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return asked.stdout.strip()


def page(rows: list[Row], results: Results) -> str:
    """The text of docs/benchmarks.md."""
    parts = [HEAD]
    for row in rows:
        parts.append(f"## {row.title}\n\n{row.about.strip()}\n\n`{row.command}` (`{row.name}`)\n")
        measured = "{date}, commit {commit}; {machine}; {versions}.\n\n```\n{output}\n```\n"
        result = results.get(row.name)
        parts.append(measured.format_map(result) if result else "Not measured yet.\n")
    return "\n".join(parts)


def filled(readme: str, rows: list[Row], results: Results) -> str:
    """README.md with the measured numbers in its phrases; ValueError if one is not there once."""
    for row in [row for row in rows if row.name in results]:
        for phrase in row.readme:
            pattern = re.sub(r"\\\{.*?\\\}", r"\\d[\\d.]*", re.escape(phrase))
            readme, count = re.subn(pattern, phrase.format(**results[row.name]["numbers"]), readme)
            if count != 1:
                raise ValueError(f"README.md has {phrase!r} {count} times; change it or rows.toml")
    return readme


def age(row: Row, results: Results) -> str:
    """When a row was measured, and how many commits have changed what it measures since."""
    date, at = (results.get(row.name, {}).get(name, "-") for name in ("date", "commit"))
    changes = git("rev-list", "--count", f"{at.rstrip('+')}..HEAD", "--", *row.measures)
    return f"{row.name:16} {date:10} {at:9} {changes or '?'} commits since in {row.measures}"


if __name__ == "__main__":
    sys.exit(main())
