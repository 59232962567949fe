"""The whole matrix of schedules and layouts, four processes against one, 30 steps each; minutes.

Run by its path: ``pytest tests/probe/every_schedule.py``.
"""

from pathlib import Path

from tests.forked import ForkServer
from tests.probe.layers import records
from tests.probe.pipelines import SEVERAL, SINGLE, alone, batch, deepseek
from tests.probe.test_stages import is_same, trained


def test_thirty_steps_of_every_schedule_are_those_of_one_process(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    alone(tmp_path / "alone", 30)
    cases = [*SINGLE, *SEVERAL, "data", "experts"]
    trained(fork_server, tmp_path, 30, *cases)
    for case in cases:
        is_same(tmp_path / case, tmp_path / "alone")


def test_expert_parallelism_of_transformers_counts_every_token(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    model, chosen = deepseek(), []
    model.save_pretrained(tmp_path / "weights")
    trained(fork_server, tmp_path, 1, "transformers")
    for layer in model.model.layers[1:]:
        layer.mlp.experts.register_forward_pre_hook(lambda m, args: chosen.append(args[1]))
    model(input_ids=batch(1))
    (line,) = records(tmp_path / "transformers")
    assert line["tokens_per_expert"] == [
        ids.flatten().bincount(minlength=8).tolist() for ids in chosen
    ]
    assert records(tmp_path / "transformers", "run")[0]["expert_parallel_size"] == 2
    assert "incomplete" not in line
