"""What the screens share, without a screen."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from microscope_tui.app import Session
from microscope_tui.lines import Glyphs
from microscope_tui.watch import Fleet


def test_the_chosen_layer_is_one_that_the_run_has(
    write_log: Callable[..., Path], make_header: Any, make_step: Any, balanced: Any, open_log: Any
) -> None:
    session = Session(Fleet(Path()), Glyphs.BLOCK)
    session.selected = 2
    session.fleet.open = open_log(
        write_log([make_header(model={"layers": [1], "layer_names": ["L1"]})])
    )
    assert session.selected == 0
