# What other packages import from here. Loaded when used (see lazy_loader).
from .keymap import BadKey as BadKey, keymap_of as keymap_of
from .keys import all_bindings as all_bindings, key_table as key_table
from .microscope import Microscope as Microscope
from .picture import NoPicture as NoPicture, draw as draw
from .remembered import begin as begin, load_view as load_view
from .screen_table import SCREENS as SCREENS
from .session import PictureRequest as PictureRequest, Preferences as Preferences
