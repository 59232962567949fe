# What other packages and the tests import from here. Loaded when used (see lazy_loader).
from .catalogue import (
    FORMATS as FORMATS,
    ForeignRun as ForeignRun,
    Search as Search,
    split_run as split_run,
)
from .keys import BadMapping as BadMapping, Keys as Keys, rules_of as rules_of
from .reader import SourceRequest as SourceRequest, Unreadable as Unreadable
