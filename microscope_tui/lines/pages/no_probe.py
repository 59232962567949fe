"""Where a run has no probe: how to make one, in two lines."""

from microscope_tui.lines.spans import Line, Span, pad


def lines(width: int, problem: str = "", *, empty: bool = False) -> list[Line]:
    """Why there is nothing to see, and the command that changes that.

    Args:
        problem: why the file cannot be read; empty where there is none.
        empty: the file is there and holds no token.
    """
    why = problem or (
        "the probe of this run ended before its first token"
        if empty
        else "this run has no probe: which token chose which expert is not known"
    )
    how: Line = [
        Span("  moe-microscope probe MODEL TEXT", "accent"),
        Span("  makes one; then open its folder", "dim"),
    ]
    first = [Span(f"  {why}", "warn" if problem or empty else "value")]
    return [pad([], width), pad(first, width), pad(how, width)]
