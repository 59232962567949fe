"""The same numbers as a run log and as the file of another tool are the same records."""

import pytest

from microscope_tui.runlog import Entry, RunReader, StepEntry, encode_record
from microscope_tui.sources import (
    Keys,
    RowReader,
    TensorBoardReader,
    WandbReader,
    counts_of_shares,
    run_record,
    step_record,
)
from tests.sources.truth import GOLDEN, STEPS, entries_of, logged

READERS = {
    "wandb": lambda: WandbReader(GOLDEN / "wandb", Keys()),
    "tensorboard": lambda: TensorBoardReader(GOLDEN / "tensorboard", Keys()),
    "tensorboard-tensors": lambda: TensorBoardReader(GOLDEN / "tensorboard-tensors", Keys()),
}


def as_run_log() -> list[Entry]:
    records = [run_record("golden", [1, 2], [4, 4], 2, writer="test", counts="shares")]
    for step in STEPS:
        row = logged(step)
        shares = [[row[f"moe_ep_usage/L-{layer}_EP-{e}"] for e in range(4)] for layer in (1, 2)]
        max_load = [row["moe/max_vio/layer_1"] + 1, row["train/block 02/load imbalance"]]
        counts = [counts_of_shares(of_layer) for of_layer in shares]
        router = {"max_load": max_load}
        records.append(step_record(step, counts, router=router, loss=row["loss"]))
    log = RunReader("golden")
    return [entry for record in records for entry in log.feed(encode_record(record))]


def facts(entries: list[Entry]) -> list[str]:
    """Everything in the records of the steps but the time; as text, so that NaN equals NaN."""
    steps = [entry for entry in entries if isinstance(entry, StepEntry)]
    for step in steps:
        step.record.time = None
    return [f"{step.record} {step.matrices()}" for step in steps]


@pytest.mark.parametrize("name", READERS)
def test_a_source_gives_the_records_of_a_run_log_with_its_numbers(name: str) -> None:
    reader: RowReader = READERS[name]()
    entries, defects = entries_of(reader)
    assert defects == 0
    assert len(facts(entries)) == len(STEPS)
    assert facts(entries) == facts(as_run_log())
