"""The colours of the light theme, for papers and light terminals."""

from microscope_tui.draw.glyphs import HOT_LEVEL
from microscope_tui.draw.heat import Palette
from microscope_tui.kit.palette import Colours, Hue, Shades, by_octaves

_WHITE = Hue("#ffffff", "bright_white", "color(231)")
_TEXT = Hue("#1f2328", "black")
_NAVY = Hue("#10336e", "blue", "color(17)")

LIGHT = Shades(
    ground=_WHITE,
    # Among the sixteen colours green, cyan and all bright ones are too pale for words.
    words={
        "value": _TEXT,
        "title": Hue("#000000", "black"),
        "dim": Hue("#5b6672", "bright_black"),
        "faint": Hue("#b3bbc5", "white"),
        "curve": Hue("#53606d", "bright_black"),
        "ok": Hue("#2b7a33", "black", "color(22)"),
        "warn": Hue("#9a6700", "magenta", "color(130)"),
        "crit": Hue("#a3101c", "red"),
        "accent": Hue("#0a5fc2", "blue"),
    },
    surface="#f3f5f7",
    panel="#e6e9ed",
    on_dark=_WHITE,
    on_light=_TEXT,
    load=by_octaves(
        *("#2a62ad", "#7fb0e6", "#dbe6f2", "#eff1f3", "#eff1f3", "#e8eaec"),
        *("#e0e2e5", "#e0e2e5", "#ecdfcb", "#f2b650", "#dd5f3a", "#7d0f12"),
    ),
    load_256=(
        *((-11, 25), (-4, 74), (-1, 255), (0, 254), (1, 253), (3, 223)),
        *((HOT_LEVEL - 1, 222), (8, 215), (12, 166), (14, 124), (16, 88)),
    ),
    load_16=((-2, "bright_blue"), (1, "bright_white"), (HOT_LEVEL - 1, "yellow"), (16, "red")),
    dead={
        Palette.DIVERGING: (_WHITE, _NAVY),
        # Among the sixteen black: white and bright yellow are alike without blue cones.
        Palette.CIVIDIS: (Hue("#53606d", "bright_white"), _WHITE._replace(named="black")),
    },
    experts=(
        Colours("#0b6f9e", "#c9dded", "#0a3f5c", (25, 153, 17), "blue"),
        Colours("#8a5c1e", "#bca590", "#38230a", (94, 180, 52), "yellow"),
        Colours("#007a4d", "#92f3c2", "#00452b", (22, 121, 22), "bright_black"),
        Colours("#a02c86", "#cb80bc", "#3d0a33", (90, 175, 53), "magenta"),
        Colours("#756b00", "#fcf294", "#474100", (58, 228, 58), "black"),
        Colours("#b84a00", "#ed8b42", "#431b00", (130, 209, 52), "red"),
        Colours("#5040d8", "#9081ff", "#120a4d", (56, 99, 16), "bright_blue"),
    ),
)
