"""The keys that write what is shown into the working directory; nothing is overwritten."""

import asyncio
from pathlib import Path

from microscope_tui.draw.export import view_csv, view_json
from microscope_tui.draw.spans import shortened
from microscope_tui.kit import out, svg
from microscope_tui.kit.base import BaseScreen
from microscope_tui.kit.keys import name_of
from microscope_tui.kit.rows import in_truecolor


async def write_view(screen: BaseScreen, kind: str) -> None:
    """Write what ``screen`` shows as ``kind``: ``csv``, ``json`` or ``svg``."""
    session, app = screen.session, screen.app
    view = session.view(1, 1)
    if view is None:
        return
    try:
        if kind == "svg":
            with in_truecolor(app):
                lines = svg.lines_of(app)
            text = svg.svg_of(lines, app.size.width, session.shades)
        elif kind == "csv":
            text = view_csv(view)
        else:
            text = view_json(view)
        path = out.free_name(Path.cwd(), f"{view.name}-{view.step}-{name_of(screen)}", f".{kind}")
        await asyncio.to_thread(out.write_new, path, text)  # the disk may be slow
    except OSError as error:
        reason = error.strerror or error
        screen.show_message(
            f"cannot write here: {reason}; start moe-microscope in a folder you can write to"
        )
        return
    session.written.append(path)
    said = f"written: {path.name} in "
    room = max(8, screen.size.width - len(said) - 2)
    screen.show_message(said + shortened(str(path.parent), room), "ok")
