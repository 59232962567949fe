"""``--torch-trace FIRST:LAST``: torch's profile of some steps."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from torch.profiler import profile

from moe_model.training.run import Run


def traced_steps(asked: str | None, steps: int) -> range:
    """None if ``asked`` is wrong for a run of ``steps``."""
    match = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", asked or "")
    first, last = (int(match[1]), int(match[2])) if match else (0, 0)
    return range(first, last + 1) if first >= 1 and last <= steps else range(0)


@contextmanager
def traced(run: Run, step: int) -> Iterator[None]:
    """Profile ``step`` on rank 0 if the option asks for it."""
    steps = traced_steps(run.options.torch_trace, run.options.steps)
    if not run.world.is_main or step not in steps:
        yield
        return
    with profile() as found:
        yield
    found.export_chrome_trace(str(run.folder / f"torch-trace-{step}.json.gz"))
