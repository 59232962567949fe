"""Text that went through ``safe_text``, in lines of at most so many cells."""

from microscope_tui.report.spans import width_of


def wrap(text: str, width: int) -> list[str]:
    """Break ``text`` at blanks; a word wider than ``width`` stays whole on its own line."""
    lines: list[str] = []
    line = ""
    for word in text.split(" "):
        longer = f"{line} {word}" if line else word
        if line and width_of(longer) > width:
            lines.append(line)
            line = word
        else:
            line = longer
    return [*lines, line] if line or not lines else lines
