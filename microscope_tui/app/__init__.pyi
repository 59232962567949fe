# What other packages and the tests import from here. Loaded when used (see lazy_loader).
from .charts import figure as figure
from .key_line import last_line as last_line
from .keymap import BadKey as BadKey, conflicts as conflicts, keymap_of as keymap_of
from .keys import (
    all_bindings as all_bindings,
    key_table as key_table,
    shown_key as shown_key,
    with_keymap as with_keymap,
    written_key as written_key,
)
from .light import LIGHT as LIGHT
from .microscope import Microscope as Microscope
from .out import (
    MOST_BYTES as MOST_BYTES,
    free_name as free_name,
    row_text as row_text,
    value_text as value_text,
    verdict_text as verdict_text,
    write_new as write_new,
)
from .palette import DARK as DARK, Shades as Shades, style_of as style_of
from .picture import SCREEN_NAMES as SCREEN_NAMES, NoPicture as NoPicture, draw as draw
from .reader import Reader as Reader
from .remembered import (
    SavedView as SavedView,
    begin as begin,
    load_view as load_view,
    save_view as save_view,
)
from .rows import Rows as Rows, Tiles as Tiles
from .screen_table import SCREENS as SCREENS
from .screens.alerts_screen import AlertsScreen as AlertsScreen
from .screens.base import BaseScreen as BaseScreen
from .screens.chart_screens import ExpertScreen as ExpertScreen, LayerScreen as LayerScreen
from .screens.compare_screens import CompareScreen as CompareScreen
from .screens.help_screen import HelpScreen as HelpScreen, help_lines as help_lines
from .screens.main_screen import MainScreen as MainScreen
from .screens.probe_screens import TokensScreen as TokensScreen
from .screens.runs_screen import RunsScreen as RunsScreen
from .session import (
    PictureRequest as PictureRequest,
    Preferences as Preferences,
    Session as Session,
)
from .svg import svg_of as svg_of
from .time_cursor import (
    BadPlace as BadPlace,
    OfExpert as OfExpert,
    TimeCursor as TimeCursor,
    parse_place as parse_place,
    parse_token as parse_token,
    step_at as step_at,
)
