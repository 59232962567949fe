"""The machine a number was measured on, in one line."""

import os
import platform
from pathlib import Path


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
