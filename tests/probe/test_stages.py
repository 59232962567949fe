"""Four processes against one on the same tokens: the stages of a pipeline, and layouts with them.

``every_schedule.py`` has the rest, with 30 steps.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from microscope_tui.probe import attach
from microscope_tui.probe.sites import Site
from microscope_tui.probe.stages import unite
from tests.forked import ForkServer
from tests.probe.layers import ADAPTER, ROUTERS, VOCABULARY, Model, records, sums
from tests.probe.pipelines import CASES, alone, batch, mask

LAYERS = [f"L{n}" for n in range(1, 8)]
NAMES = [*LAYERS, "mtp.0"]
UNEQUAL = {"time", "tokens_per_s", "step_time_s", "memory_bytes", "losses"}
SALIENCY = {"mean_weight", "mean_output_norm"}


class Trained(NamedTuple):
    folder: Path
    errors: list[str]
    """Standard error of each rank."""


def trained(server: ForkServer, folder: Path, steps: int, *cases: str) -> Trained:
    program = server.start(
        "-m", "tests.probe.pipelines", str(folder), *cases, PIPELINE_STEPS=f"{steps}"
    )
    assert program.wait(timeout=600) == 0
    return Trained(folder, [(folder / f"{rank}.txt").read_text("utf-8") for rank in range(4)])


def near(values: list[float | None]) -> list[Any]:
    return [one if one is None else pytest.approx(one, rel=1e-4) for one in values]


def is_same(log: Path, reference: Path) -> None:
    """Lines and header are those of one process, but for the last bits of sums in another order."""
    for line, other in zip(records(log), records(reference), strict=True):
        assert line.keys() == other.keys()
        for name in line.keys() - UNEQUAL - SALIENCY - {"router", "loss"}:
            assert line[name] == other[name], (line["step"], name)
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-6)
        for name in SALIENCY:
            for own, of_one in zip(line[name], other[name], strict=True):
                is_shared = log.name == "experts" and not own  # not measured
                assert is_shared or own == near(of_one), (line["step"], name)
        assert line["router"].keys() == other["router"].keys()
        for name, row in other["router"].items():
            assert line["router"][name] == near(row), (line["step"], name)
    (run,), (other,) = records(log, "run"), records(reference, "run")
    assert run["world_size"] == 4
    assert run["balance"] == other["balance"]
    other["model"].pop("parameters", None)  # not known of stages
    assert run["model"] | {"parameters": 0} == other["model"] | {"parameters": 0}


@pytest.fixture(name="few", scope="module")
def _few(fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("stages")
    alone(folder / "alone", 3)
    elsewhere = ("gpipe", "interleaved", "zero bubble", "zbv", "data")
    cases = [name for name in CASES if name not in elsewhere]
    return trained(fork_server, folder, 3, *cases)


def test_the_numbers_of_the_layers_in_megatron_are_their_depths(tmp_path: Path) -> None:
    model = Model()
    for number, path in enumerate(ROUTERS, start=6):
        model.get_submodule(path).layer_number = number  # type: ignore[assignment]
    with attach(model, tmp_path, routers=ROUTERS) as probe:
        assert [site.name for site in probe.sites] == ["L5", "L6"]


@pytest.mark.parametrize("case", ["1f1b", "experts"])
def test_ranks_with_stages_write_the_log_of_one_process(case: str, few: Trained) -> None:
    is_same(few.folder / case, few.folder / "alone")
    (run,) = records(few.folder / case, "run")
    assert run["expert_parallel_size"] == (2 if case == "experts" else 1)


@pytest.mark.parametrize("case", ["context", "tensor", "sequence", "told"])
def test_every_real_token_counts_once_however_it_is_shared(case: str, few: Trained) -> None:
    chosen: list[torch.Tensor] = []
    model = Model()
    for path in ROUTERS:
        model.get_submodule(path).register_forward_hook(lambda m, args, out: chosen.append(out[1]))
    model(batch(1) % VOCABULARY)
    (line,) = records(few.folder / case)
    for row, ids in zip(line["tokens_per_expert"], chosen, strict=True):
        assert row == ids[mask(1).flatten()].flatten().bincount(minlength=len(row)).tolist()
    assert "incomplete" not in line


@pytest.mark.parametrize("case", ["mask given", "mask of the first"])
def test_padding_is_left_out_in_the_stages_that_see_the_mask(case: str, few: Trained) -> None:
    (run,) = records(few.folder / case, "run")
    unseen = [] if case == "mask given" else LAYERS[:-1]
    assert run["config"].get("padding_counted", []) == unseen
    assert few.errors[0].count("padding counts in L1, L2, L3, L4, L5, L6: their stages") == 1
    for line in records(few.folder / case):
        real = int(mask(line["step"]).sum())
        for name, row in zip(NAMES, line["tokens_per_expert"], strict=True):
            assert sum(row) == 2 * (batch(1).numel() if name in unseen else real)


def test_different_layers_of_one_path_are_not_summed_and_training_continues(few: Trained) -> None:
    for errors in few.errors:
        assert errors.count("layers.0.mlp.experts has other weights on rank 0 than on rank 1") == 1
        assert "pass attach(..., depths={'layers.0.mlp.experts': DEPTH})" in errors
        assert "same names: trained 4 steps" in errors
    assert not records(few.folder / "same names")


def in_place() -> nn.Module:
    model = Model()
    model.compile(backend="eager")
    return model


@pytest.mark.parametrize("compiled", [in_place, lambda: torch.compile(Model(), backend="eager")])
def test_a_stage_that_is_compiled_as_a_whole_is_refused(compiled: Any, tmp_path: Path) -> None:
    stages = [SimpleNamespace(submod=one) for one in (Model(), compiled())]
    with pytest.raises(ValueError, match=r"compile its layers instead \(layer\.compile\(\)"):
        attach(stages, tmp_path, routers={"0.layers.1.gate": ADAPTER})


def test_a_compiled_stage_on_one_rank_is_refused_on_all(few: Trained) -> None:
    for rank, errors in enumerate(few.errors):
        start = "" if rank == 1 else "attach failed on rank 1: "
        assert errors.count(f"compiled stage: {start}a stage of a pipeline that is compiled") == 1


def test_compiled_layers_of_a_stage_are_counted_in_its_training_passes(few: Trained) -> None:
    assert sums(few.folder / "compiled layer") == [[80, 80, 80, 80]] * 2


def test_a_stage_that_is_compiled_after_attach_is_not_counted_and_named(few: Trained) -> None:
    lines = records(few.folder / "compiled later")
    for line in lines:
        assert line["incomplete"] == "1 ranks did not count; not seen: L1"
        counts = line["tokens_per_expert"]
        assert [row and sum(row) for row in counts] == [80, None, 80, 80]
    assert len(lines) == 2
    assert [errors.count("compiled as a whole") for errors in few.errors] == [1, 2, 1, 1]


def test_stages_of_equal_paths_and_weights_are_no_replicas(few: Trained) -> None:
    for errors in few.errors:
        text = "equal stages: layers.0.gate has one path in stages 0 and 1 of the pipeline: "
        assert errors.count(text) == 1
    assert not (few.folder / "equal stages").exists()


@pytest.mark.parametrize("still", [1, 2])
def test_equal_weights_that_a_warm_up_leaves_so_are_looked_at_again(
    still: int, few: Trained
) -> None:
    case = f"warm-up {still}"
    assert [line["step"] for line in records(few.folder / case)] == [*range(1, still + 1)]
    for errors in few.errors:
        assert f"{case}: trained 5 steps" in errors
        text = "layers.1.gate has weights that are not the same on ranks 0, 1, 2, 3: different"
        assert errors.count(text) == 2


@pytest.mark.parametrize("case", ["warm-up 3", "given depths, warm-up 1"])
def test_later_differences_and_those_of_given_depths_end_nothing(case: str, few: Trained) -> None:
    assert len(records(few.folder / case)) == 5


def test_given_depths_make_them_rows_of_one_model(few: Trained) -> None:
    (run,) = records(few.folder / "depths", "run")
    assert run["model"]["layer_names"] == LAYERS
    for line in records(few.folder / "depths"):
        assert {sum(row) for row in line["tokens_per_expert"]} == {2 * batch(1).numel()}


def test_only_the_rows_of_a_stage_whose_probe_has_failed_are_lacking(few: Trained) -> None:
    first, *rest = records(few.folder / "fails")
    assert "incomplete" not in first
    assert len(rest) == 3
    for line in rest:
        assert line["incomplete"] == "1 ranks did not count; not seen: L5, L6"
        lacking = [row is None for row in line["tokens_per_expert"]]
        assert lacking == [name in ("L5", "L6") for name in LAYERS]
    assert few.errors[2].count("made to fail") == 1


def test_a_rank_that_does_not_step_ends_the_probe_and_is_named(few: Trained) -> None:
    assert [line["step"] for line in records(few.folder / "falls behind")] == [1, 2]
    for rank, errors in enumerate(few.errors):
        assert "falls behind: trained 4 steps" in errors
        behind = "step 3 is not summed after 1 s, these ranks are behind: rank 3 (step 2)"
        assert (behind in errors) == (rank < 3)


def test_one_path_with_other_numbers_of_experts_is_not_one_router() -> None:
    def site(experts: int) -> Site:
        return Site("model.gate", nn.Linear(2, experts), lambda *_: None, True, experts, 2)  # type: ignore[arg-type, return-value]

    assert [one.path for one in unite([[site(8)], [site(8)]], 0)] == ["model.gate"]
    with pytest.raises(ValueError, match="another router on rank 0"):
        unite([[site(8)], [site(4)]], 0)
