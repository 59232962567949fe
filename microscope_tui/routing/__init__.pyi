# What other packages import from here. Loaded when used (see lazy_loader).
from .compare import (
    LayerMismatch as LayerMismatch,
    Mismatch as Mismatch,
    NotComparable as NotComparable,
    compare as compare,
)
from .file import Routing as Routing, RoutingWriter as RoutingWriter
from .layout import (
    FEWEST_EXPECTED as FEWEST_EXPECTED,
    FILE_NAME as FILE_NAME,
    MOST_CHOICES as MOST_CHOICES,
    MOST_EXPERTS as MOST_EXPERTS,
    BadRouting as BadRouting,
    Choice as Choice,
    Shape as Shape,
    Tables as Tables,
)
