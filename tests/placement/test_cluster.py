"""Clusters whose numbers do not fit together are refused in one line that says what would fit."""

import pytest

from microscope_tui.placement import BadCluster, Cluster, contiguous, double_copies, rank_loads


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"experts": 8, "ranks": 3}, r"8 experts and 0 .* by 3 ranks; --replicas 1 would"),
        ({"experts": 8, "ranks": 16}, r"--replicas 8 would"),
        ({"experts": 8, "ranks": 4, "replicas": 25}, r"--replicas 25: at most 24 fit"),
        ({"experts": 8, "ranks": 4, "nodes": 3}, r"--nodes 3: 4 ranks do not divide"),
        ({"experts": 8, "ranks": 4, "groups": 3}, r"--groups 3: 8 experts do not divide"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_with_what_would(
    numbers: dict[str, int], words: str
) -> None:
    with pytest.raises(BadCluster, match=words) as refused:
        Cluster(**numbers)
    assert "\n" not in str(refused.value)


def test_copies_share_evenly_and_a_second_one_on_a_rank_is_counted() -> None:
    placement = [[0, 0], [0, 1]]
    assert rank_loads([9, 1], placement) == [6, 4]
    assert double_copies(placement) == 1
    assert contiguous(5, 2) == [[0, 1, 2], [3, 4]]
