"""The probe: what a trainer imports to write a run log.

    from microscope_tui.probe import Adapter, MicroscopeCallback, attach

``RunRecorder`` needs no torch; ``attach`` and ``MicroscopeCallback`` are imported on first use.
"""

from typing import Any

import lazy_loader

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    """Import ``name`` on first use; ``ModuleNotFoundError`` names what to install."""
    try:
        return _load(name)
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package == "microscope_tui":
            raise
        raise ModuleNotFoundError(
            f"microscope_tui.probe.{name} needs {package}: pip install 'moe-microscope[train]'.",
            name=error.name,
        ) from None
