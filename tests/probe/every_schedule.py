"""Every schedule and layout of a pipeline, four processes against one, 30 steps each; minutes.

Run by its path: ``pytest tests/probe/every_schedule.py``.
"""

from pathlib import Path

from tests.forked import ForkServer
from tests.probe.pipelines import SEVERAL, SINGLE, alone
from tests.probe.test_stages import is_same, trained


def test_thirty_steps_of_every_schedule_are_those_of_one_process(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    alone(tmp_path / "alone", 30)
    cases = [*SINGLE, *SEVERAL, "data", "experts"]
    trained(fork_server, tmp_path, 30, *cases)
    for case in cases:
        is_same(tmp_path / case, tmp_path / "alone")
    program = fork_server.start("-m", "microscope_tui", "check", f"{tmp_path / 'experts'}")
    assert "worst L2: 50%, busiest rank (1) 2.00 x mean" in program.communicate()[0]
