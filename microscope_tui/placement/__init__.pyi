# What other packages and the tests import from here. Loaded when used (see lazy_loader).
from .cluster import BadCluster as BadCluster
from .cluster import Cluster as Cluster
from .cluster import Placement as Placement
from .cluster import contiguous as contiguous
from .cluster import copies_of as copies_of
from .cluster import double_copies as double_copies
from .cluster import rank_loads as rank_loads
from .published import published as published
