"""The sensor: what a trainer imports to write a run log.

    from microscope_tui.probe import Adapter, MicroscopeCallback, attach

``RunRecorder`` needs no torch; ``attach`` and ``MicroscopeCallback`` are imported where they are
asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from microscope_tui.probe.adapter import Adapter
    from microscope_tui.probe.attaching import attach
    from microscope_tui.probe.judge import Alert
    from microscope_tui.probe.recorder import RunRecorder
    from microscope_tui.probe.trainer_callback import MicroscopeCallback

__all__ = ["Adapter", "Alert", "MicroscopeCallback", "RunRecorder", "attach"]

_HOMES = {
    "Adapter": "adapter",
    "Alert": "judge",
    "MicroscopeCallback": "trainer_callback",
    "RunRecorder": "recorder",
    "attach": "attaching",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
