"""No bytes can hurt a reader: a sample of ``python -m benchmarks.fuzz_sources``."""

from pathlib import Path

import pytest

from microscope_tui.sources import SourceRequest, catalogue
from tests.sources import fuzz_seeds
from tests.sources.dumped import drained, settle
from tests.sources.fuzz import FORMATS, case

SHARDS, CASES = 4, 40


@pytest.mark.parametrize("shard", range(SHARDS))
@pytest.mark.parametrize("name", FORMATS)
def test_no_damage_hurts_the_reader(name: str, shard: int) -> None:
    for seed in range(shard * CASES, (shard + 1) * CASES):
        FORMATS[name](case(name, seed))


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_number_is_the_same_file(name: str) -> None:
    assert [case(name, seed) for seed in range(20)] == [case(name, seed) for seed in range(20)]
    assert len({case(name, seed) for seed in range(20)}) > 10


@pytest.mark.parametrize("name", fuzz_seeds.NAMES)
def test_what_is_damaged_was_sound_before(tmp_path: Path, name: str) -> None:
    path = tmp_path / fuzz_seeds.file_name(name)
    path.write_bytes(fuzz_seeds.seed_of(name))
    settle(path)
    form, asked = catalogue.FORMATS[name], SourceRequest(top_k=2)
    assert form.reader.recognises(path, asked.rules)
    for run in form.reader.runs(path, asked.rules):
        records = drained(form.open(path, run, "sound", asked))
        assert [record for record in records if record["kind"] == "step"]
