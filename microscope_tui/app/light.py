"""The colours of the light theme, for papers and light terminals.

The calm cells are near white; amber to dark red overloads, and dark blue starves. A cell without
tokens has a blue of its own.
"""

from microscope_tui.app.palette import CIVIDIS, VIRIDIS, Colours, Hue, Shades, evenly
from microscope_tui.lines import CALM_FROM, CALM_TO, HOT_LEVEL, Palette

_WHITE = Hue("#ffffff", "color(231)", "bright_white")
_TEXT = Hue("#1f2328", "color(234)", "black")
_NO_TOKEN = Hue("#ffffff", "color(231)", "bright_white")
_NAVY = Hue("#10336e", "color(17)", "blue")
_EMPTY = (Hue("#53606d", "color(240)", "bright_black"), _WHITE)

LIGHT = Shades(
    ground=_WHITE,
    # Among the sixteen colours green, cyan and all bright ones are too pale for words.
    words={
        "value": _TEXT,
        "title": Hue("#000000", "color(16)", "black"),
        "dim": Hue("#5b6672", "color(241)", "bright_black"),
        "faint": Hue("#c3cad2", "color(251)", "white"),
        "curve": Hue("#53606d", "color(240)", "bright_black"),
        "ok": Hue("#2b7a33", "color(22)", "black"),
        "warn": Hue("#8f6400", "color(94)", "magenta"),
        "crit": Hue("#a8101c", "color(124)", "red"),
        "accent": Hue("#0a5fc2", "color(25)", "blue"),
    },
    surface="#f3f5f7",
    panel="#e6e9ed",
    on_dark=_WHITE,
    on_light=_TEXT,
    load=(
        (-4.0, "#2a62ad"),
        (-1.6, "#7fb0e6"),
        (-0.75, "#dbe6f2"),
        (CALM_FROM, "#eff1f3"),
        (-0.25, "#eff1f3"),
        (0.0, "#e8eaec"),
        (0.25, "#e0e2e5"),
        (CALM_TO, "#e0e2e5"),
        (0.72, "#ecdfcb"),
        (1.5, "#f2b650"),
        (2.6, "#dd5f3a"),
        (4.0, "#7d0f12"),
    ),
    load_256=(
        *((-11, 25), (-4, 74), (-1, 255), (0, 254), (1, 253), (3, 224)),
        *((HOT_LEVEL - 1, 222), (8, 215), (12, 166), (14, 124), (16, 88)),
    ),
    load_16=((-2, "bright_blue"), (1, "bright_white"), (HOT_LEVEL - 1, "yellow"), (16, "red")),
    steps={
        Palette.DIVERGING: (
            *((0.0, "#e8eaec"), (0.42, "#f2b650")),
            *((0.64, "#dd5f3a"), (1.0, "#7d0f12")),
        ),
        Palette.VIRIDIS: VIRIDIS,
        Palette.CIVIDIS: CIVIDIS,
        Palette.GREY: evenly("#cfd4d9", "#15181b"),
    },
    steps_256={
        Palette.DIVERGING: (254, 223, 222, 215, 209, 166, 160, 124, 88),
        Palette.VIRIDIS: (53, 54, 25, 30, 36, 36, 41, 112, 184),
        Palette.CIVIDIS: (17, 18, 60, 243, 244, 101, 143, 185, 220),
        Palette.GREY: (252, 250, 248, 246, 243, 240, 238, 236, 233),
    },
    steps_16={
        Palette.DIVERGING: ("bright_white", "bright_yellow", "bright_yellow", "bright_red", "red"),
        Palette.VIRIDIS: ("blue", "bright_blue", "cyan", "bright_green", "bright_yellow"),
        Palette.CIVIDIS: ("blue", "blue", "bright_black", "white", "bright_yellow"),
        Palette.GREY: ("bright_white", "white", "white", "bright_black", "black"),
    },
    dead={
        Palette.DIVERGING: (_NO_TOKEN, _NAVY),
        Palette.VIRIDIS: _EMPTY,
        Palette.CIVIDIS: _EMPTY,
        Palette.GREY: (_NO_TOKEN, _NAVY),
    },
    experts=(
        Colours("#0077a8", "#bfe6f5", "#004a6b", (31, 153, 23), "blue"),
        Colours("#a86400", "#ffd591", "#5e3800", (130, 222, 58), "yellow"),
        Colours("#00794c", "#8fd6b4", "#00402a", (29, 115, 22), "bright_black"),
        Colours("#a83290", "#eaa6d8", "#5b1350", (127, 176, 53), "magenta"),
        Colours("#7a7300", "#f2ee9a", "#47430a", (100, 229, 58), "black"),
        Colours("#c2331a", "#f0a796", "#611409", (160, 216, 88), "red"),
        Colours("#5a4ad6", "#c3bdfb", "#2b2186", (62, 147, 54), "bright_blue"),
    ),
)
