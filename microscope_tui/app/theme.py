"""The colours of what Textual draws by itself (the command palette), in those of the screens."""

from textual.theme import Theme

from microscope_tui.app.renderables import palette

THEME = Theme(
    name="microscope",
    primary=palette.ACCENT,
    secondary=palette.CURVE,
    accent=palette.ACCENT,
    foreground=palette.TEXT,
    background=palette.GROUND,
    surface="#151b22",
    panel="#1b2430",
    success=palette.OK,
    warning=palette.WARN,
    error=palette.CRITICAL,
    dark=True,
)
