"""The machine a number was measured on, the options of a benchmark, and a row of its numbers."""

import argparse
import math
import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def machine() -> str:
    """Processor, cores, system and Python."""
    processor = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    except OSError:
        pass  # not Linux: the platform's own word will do
    cores = os.cpu_count()
    return f"{processor}, {cores} cores, {platform.system()}, Python {platform.python_version()}"


def options_of(description: str, *paths: str, **defaults: Any) -> argparse.Namespace:
    """The command line: paths, and an option for every default, of its type; or for a type.

    A path whose name ends in ``+`` is given once or more. A list stands for values of the type of
    the first one (or texts), a tuple for choices.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in paths:
        several = "+" if name.endswith("+") else None
        parser.add_argument(name.rstrip("+"), type=Path, nargs=several)
    for name, default in defaults.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(default, bool):
            parser.add_argument(flag, action="store_true")
        elif isinstance(default, type):
            parser.add_argument(flag, type=default)
        elif isinstance(default, list):
            kind = type(default[0]) if default else str
            parser.add_argument(flag, type=kind, nargs="+", default=default)
        elif isinstance(default, tuple):
            parser.add_argument(flag, choices=default, nargs="+", default=default)
        else:
            parser.add_argument(flag, type=type(default), default=default)
    return parser.parse_args()


def say(name: str, values: Sequence[float], most: float = math.inf) -> bool:
    """A row of numbers; whether the median, or the only value, is within the target ``most``."""
    ranked, middle = sorted(values), statistics.median(values)
    line = f"{name:>34}: {middle:8.4g}"
    if ranked[1:]:
        late = ranked[int(0.95 * (len(ranked) - 1))]
        line += f" median, 95 % {late:.3g}, {ranked[0]:.3g} to {ranked[-1]:.3g} ({len(ranked)})"
    if math.isfinite(most):
        line += f"   target {most:g}  {'ok' if middle <= most else 'MISSED'}"
    print(line, flush=True)
    return middle <= most
