# What other packages and the tests import from here. Loaded when used (see lazy_loader).
from .cluster import BadCluster as BadCluster, Cluster as Cluster, rank_loads as rank_loads
from .cost import (
    OF_HEADER as OF_HEADER,
    Cost as Cost,
    CostRequest as CostRequest,
    Reads as Reads,
    Uneven as Uneven,
    cost_of as cost_of,
)
from .counted import (
    Counts as Counts,
    Layer as Layer,
    NoCounts as NoCounts,
    read_counts as read_counts,
)
from .files import (
    FORMS as FORMS,
    BadFile as BadFile,
    read_form as read_form,
    write_form as write_form,
)
from .published import published as published
from .refine import refined as refined
from .study import (
    BANDWIDTH as BANDWIDTH,
    KEPT_GAIN as KEPT_GAIN,
    BadWindow as BadWindow,
    Request as Request,
    Scored as Scored,
    Study as Study,
    study as study,
)
