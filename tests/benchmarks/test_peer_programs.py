"""What the peers get is read by the microscope as the run log that it was written from."""

import json
from pathlib import Path

from benchmarks.bulk import write_bulk
from benchmarks.peer_programs import config, scalars
from microscope_tui.sources import Asked, Keys, Row, RowReader, RowRecords, Rows


class Logged(RowReader):
    """The numbers that are written for the peers, in one read."""

    def __init__(self, log: Path) -> None:
        super().__init__(Path(), Keys())
        self.config, self.log, self.modified = config(log), log, 0.0

    def read(self, max_bytes: int = 0) -> Rows:
        rows = []
        for step, time, values in scalars(self.log):
            targets = [self.keys[name] for name in values]
            assert None not in targets
            numbers = map(float, values.values())
            rows.append(Row(step, time, list(zip(targets, numbers, strict=True))))  # type: ignore[arg-type]
        self.exhausted = True
        return Rows(rows)


def test_every_number_of_the_run_log_reaches_the_microscope_by_way_of_the_peers(
    tmp_path: Path,
) -> None:
    log = tmp_path / "run" / "metrics.jsonl"
    write_bulk(log, routers=3, num_experts=4, top_k=2, tokens=256, steps=20, collapse=(1, 9))
    written = [json.loads(line) for line in log.read_bytes().splitlines()]
    steps = [record for record in written if record["kind"] == "step"]
    run, *found = RowRecords(Logged(log), "run", "test", Asked()).read().records
    assert (run["model"]["num_experts"], run["model"]["top_k"]) == (4, 2)
    assert len(found) == len(steps) == 20
    for record, step in zip(found, steps, strict=True):
        for name in ("step", "loss", "learning_rate", "grad_norm", "tokens_per_expert", "router"):
            assert record[name] == step[name]
