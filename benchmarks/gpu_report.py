"""Everything that needs a GPU to be known, in one command: ``make gpu-report``.

    python -m benchmarks.gpu_report                                # a CUDA GPU; 64 without one
    python -m benchmarks.gpu_report --device cpu --out /tmp/r.json # the same checks, tiny

Each check ends as passed or failed with its numbers, whatever happens to the others. The report
names the processor, torch and its CUDA, and neither host nor user nor folders. Exit codes: 0 all
checks passed, 1 one failed, 64 no GPU.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch

from benchmarks.gpu_checks import CHECKS, Place

NO_DEVICE = 64


def main(arguments: list[str] | None = None) -> int:
    """Run all checks and write the report; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out", type=Path, default=Path("gpu-report.json"))
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "gpu-report: this torch finds no usable GPU: run it where there is one, with a CUDA "
            "build of torch. Nothing was written.",
            file=sys.stderr,
        )
        return NO_DEVICE
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first product
    report = report_of(options.device)
    options.out.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    failed = [name for name, check in report["checks"].items() if not check["passed"]]
    print(f"{options.out}: {len(report['checks']) - len(failed)} passed, {len(failed)} failed.")
    return 1 if failed else 0


def report_of(device: str) -> dict:
    """The machine, and how every check ended."""
    cuda = device == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        place = Place(torch.device(device), Path(folder))
        checks = {name: outcome(check, place) for name, check in CHECKS.items()}
    return {
        "device": torch.cuda.get_device_name() if cuda else device,
        "capability": list(torch.cuda.get_device_capability()) if cuda else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "checks": checks,
    }


def outcome(check, place: Place) -> dict:
    """``passed``, ``numbers`` and seconds of a check; of one that broke, kind and words."""
    started = time.perf_counter()
    try:
        passed, numbers = check(place)
        found = {"passed": bool(passed), "numbers": numbers}
    except Exception as error:
        traceback.print_exc()  # for who is looking; the report holds no folder
        found = {"passed": False, "numbers": {}, "error": type(error).__name__}
    return {**found, "seconds": round(time.perf_counter() - started, 1)}


if __name__ == "__main__":
    sys.exit(main())
