"""Clusters and loads for property tests."""

from hypothesis import strategies as st

from microscope_tui.watch.cluster import Cluster, Placement


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    """Up to 96 experts on up to 12 ranks, some of them in groups and nodes that do not fit."""
    nodes, groups = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    ranks = nodes * draw(st.integers(1, 4))
    experts = groups * draw(st.integers(1, 16))
    least = -(-experts // ranks)
    per_rank = draw(st.integers(least, max(least, min(experts, least + 3))))
    extra = per_rank * ranks - experts
    return Cluster(experts=experts, ranks=ranks, nodes=nodes, groups=groups, replicas=extra)


@st.composite
def fits(draw: st.DrawFn) -> tuple[list[int], Cluster]:
    """Loads of a layer, many of them equal or nothing in some draws, and its cluster."""
    cluster = draw(clusters())
    most = draw(st.sampled_from([0, 3, 100, 1_000_000]))
    size = cluster.experts
    return draw(st.lists(st.integers(0, most), min_size=size, max_size=size)), cluster


def node_size(cluster: Cluster) -> int:
    """Ranks of a node; of all together where the nodes do not divide the groups."""
    return cluster.ranks if cluster.groups % cluster.nodes else cluster.ranks // cluster.nodes


def groups_are_together(placement: Placement, cluster: Cluster) -> bool:
    ranks, size = cluster.ranks // cluster.nodes, cluster.experts // cluster.groups
    nodes = [placement[start : start + ranks] for start in range(0, cluster.ranks, ranks)]
    homes = [{expert // size for held in node for expert in held} for node in nodes]
    return node_size(cluster) == cluster.ranks or sum(map(len, homes)) == cluster.groups
