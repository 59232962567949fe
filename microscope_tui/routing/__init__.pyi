# What other packages and the tests import from here. Loaded when used (see lazy_loader).
from .compare import (
    LayerMismatch as LayerMismatch,
    MarginBin as MarginBin,
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
    PREAMBLE as PREAMBLE,
    BadRouting as BadRouting,
    Choice as Choice,
    Shape as Shape,
    Tables as Tables,
    sections as sections,
)
