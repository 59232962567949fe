"""No bytes can hurt a reader: a sample of ``python -m benchmarks.fuzz_sources``."""

import pytest

from tests.sources.fuzz import FORMATS, case
from tests.sources.truth import GOLDEN

SHARDS, CASES = 4, 75


@pytest.mark.parametrize("shard", range(SHARDS))
@pytest.mark.parametrize("name", FORMATS)
def test_no_damage_hurts_the_reader(name: str, shard: int) -> None:
    for seed in range(shard * CASES, (shard + 1) * CASES):
        FORMATS[name](case(name, seed))


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_number_is_the_same_file(name: str) -> None:
    assert [case(name, seed) for seed in range(20)] == [case(name, seed) for seed in range(20)]
    assert case(name, 1) not in [golden.read_bytes() for golden in GOLDEN.iterdir()]
