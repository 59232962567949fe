"""Four processes without a common group: their logs as one run.

``python -m tests.probe.test_parts FOLDER ACTOR`` is one of them; without ACTOR it sees all tokens.
"""

import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.families.tiny import build
from microscope_tui.probe import attach
from tests.conftest import Call
from tests.forked import ForkServer
from tests.probe.layers import Model, records

ACTORS, STEPS = range(4), range(1, 4)


def main(folder: Path, actors: list[int], part: str | None) -> None:
    warnings.simplefilter("default")  # those of torch are not our errors
    torch.manual_seed(0)
    model = build("mixtral", output_router_logits=True).train()
    with attach(model, folder, part=part) as probe:
        for step in STEPS:
            losses, tokens = [], []
            for actor in actors:
                made = torch.Generator().manual_seed(10 * step + actor)
                ids = torch.randint(3, 90, (2, 6 + 5 * actor), generator=made)
                output = model(input_ids=ids, labels=ids)
                output.loss.backward()
                losses.append(float(output.loss) * ids.numel())
                tokens.append(ids.numel())
            mean = sum(losses) / sum(tokens)
            probe.step(loss=mean, losses={"kl": -mean}, reward=3 * mean)


def test_four_parts_are_one_log(fork_server: ForkServer, call: Call, tmp_path: Path) -> None:
    run = ["-m", "tests.probe.test_parts", str(tmp_path)]
    programs = [fork_server.start(*run, *end) for end in [*([str(n)] for n in ACTORS), []]]
    errors = [program.communicate()[1] for program in programs]
    assert [program.returncode for program in programs] == [0] * 5, "\n".join(errors)
    code, _, err = call("import", *sorted((tmp_path / "rl").iterdir()), tmp_path / "sum", "--merge")
    assert (code, err) == (0, "")
    both = [records(tmp_path / name) for name in ("sum/rl", "whole")]
    assert [line["step"] for line in both[0]] == list(STEPS)
    for ours, theirs in zip(*both, strict=True):
        assert [ours[key] == theirs[key] for key in ("tokens", "tokens_per_expert")] == [True] * 2
        for key in ("loss", "losses", "reward"):
            assert ours[key] == pytest.approx(theirs[key], rel=1e-5)
        assert ours["router"].keys() == theirs["router"].keys()
        for name in ("entropy", "max_load", "dead_experts", "margin", "max_logit"):
            assert ours["router"][name] == pytest.approx(theirs["router"][name], rel=1e-4), name


@pytest.mark.parametrize("part", ["../x", 3])
def test_the_name_of_a_part_is_a_text_and_no_path(tmp_path: Path, part: Any) -> None:
    with pytest.raises(ValueError, match="pass a text of up to 40 letters"):
        attach(Model(), tmp_path, part=part)


if __name__ == "__main__":
    number = sys.argv[2:]
    place = Path(sys.argv[1]) / ("rl" if number else "whole")
    main(place, [int(n) for n in number] or list(ACTORS), f"actor-{number[0]}" if number else None)
