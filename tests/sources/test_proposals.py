"""Unknown keys: the right proposal for layouts of public code, and a wrong one is never used."""

from pathlib import Path

import pytest

from microscope_tui.sources import ForeignRun, Keys, RecordReader, Search, SourceRequest, Target
from tests.sources.layouts import LAYOUTS, OTHERS, Layout, write
from tests.sources.reading import counts_of, drained

KNOWN_MISSES = {"add-scalars": "the expert is only in the name of a folder"}
FOUND = [layout for layout in LAYOUTS if layout.name not in KNOWN_MISSES]


def readers(path: Path, request: SourceRequest | None = None) -> list[RecordReader]:
    """One for each run at ``path``."""
    runs = [
        run
        for run in Search(path, request or SourceRequest()).runs()
        if isinstance(run, ForeignRun)
    ]
    return [run.form.open(run.file, run.run, run.name, run.request) for run in runs]


def assert_recognised(path: Path, layout: Layout) -> None:
    """Every key gets its quantity, layer and expert, and the mapped log has the true numbers."""
    (reader,) = readers(path)
    by_itself, proposed = drained(reader), reader.proposed
    assert proposed is not None
    key, number = next(iter(layout.keys.items()))
    quantity, keys = "tokens_per_expert" if number == "counts" else "share", Keys(proposed.rules)
    for layer in layout.layers:
        for expert in range(layout.experts):
            wanted = Target(quantity, layer if "{l" in key else None, expert)
            assert keys[key.format(l=layer, e=expert)] == wanted, proposed
    is_known = not {"config", "tokens", "selected"}.isdisjoint(layout.keys.values())
    assert proposed.top_k == layout.k or (proposed.top_k is None and not is_known)
    (reader,) = readers(path, proposed)
    assert counts_of(drained(reader)) == layout.truth()
    assert not by_itself or counts_of(by_itself) == layout.truth()


def assert_not_used_by_itself(path: Path) -> None:
    """No proposal, or one that the user must accept."""
    assert not [records for reader in readers(path) for records in drained(reader)]


def test_at_least_eighteen_of_twenty_layouts_are_recognised() -> None:
    assert (len(LAYOUTS), len(FOUND)) == (20, 20 - len(KNOWN_MISSES))
    assert len(FOUND) >= 18


@pytest.mark.parametrize("layout", FOUND, ids=lambda layout: layout.name)
def test_a_layout_of_public_code_is_recognised(layout: Layout, tmp_path: Path) -> None:
    assert_recognised(write(tmp_path, layout), layout)


@pytest.mark.parametrize("layout", OTHERS, ids=lambda layout: layout.name)
def test_other_shares_and_other_indices_are_not_used_by_themselves(
    layout: Layout, tmp_path: Path
) -> None:
    assert_not_used_by_itself(write(tmp_path, layout))
