"""Looks at gradients: experts and routers that train and get none are counted, others are not."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from microscope_tui.diagnosis import Severity
from microscope_tui.probe import MicroscopeCallback, attach, still
from tests.conftest import open_log
from tests.probe.layers import EXPERTS, ROUTERS, Model, records
from tests.probe.real_text import TEXT, small_mixtral, tokenizer

pytestmark = pytest.mark.filterwarnings("default")  # of the libraries, not of the probe
STACKS = 2 * 8
"""Expert tensors of a layer of the small Mixtral, whose experts are two stacks."""


@dataclass
class Setup:
    """One way to train a model; by default all of a Mixtral on labels."""

    model: Callable[[], Any] = small_mixtral
    steps: int = 5
    rates: Sequence[float] = (1e-3,)
    """Of the first steps; the last one is repeated."""
    with_loss: float = 1.0
    """Share of the tokens, the last of each sequence."""
    own_loss: Callable[[Any, Tensor], Tensor] | None = None
    """Of the output and the tokens."""
    labels: bool = True
    """The model gets them."""
    accumulation: int = 1
    every: int = 1
    optimizer: Any = torch.optim.AdamW
    options: dict[str, Any] = field(default_factory=dict)
    skipped: int = 0
    """Steps that a scaler skips."""
    in_backward: Any = None
    """Makes hooks that update every second parameter, and clear its gradient, in the backward."""


def run(setup: Setup, folder: Path, model: Any = None) -> list[Any]:
    """What ``looks`` returns of the training."""
    model = model or setup.model()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = setup.optimizer(trained, lr=1.0, **setup.options)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0 if not setup.skipped else 2.0**127)
    routers = ROUTERS if any(isinstance(m, Model) for m in model.modules()) else None
    made = torch.Generator().manual_seed(0)
    for weight in trained[::2] if setup.in_backward else ():
        setup.in_backward(weight, setup)
    with attach(model.train(), folder, routers=routers, every=setup.every) as probe:
        for step in range(setup.steps * setup.every):
            rate = setup.rates[min(step, len(setup.rates) - 1)]
            for group in optimizer.param_groups:
                group["lr"] = rate
            for _ in range(setup.accumulation):
                ids = torch.randint(3, 49, (8, 64), generator=made)
                labels = ids.where(torch.arange(64) >= 64 - 64 * setup.with_loss, -100)
                given = {"labels": labels} if setup.labels else {}
                output = model(input_ids=ids, **given)
                loss = setup.own_loss(output, ids) if setup.own_loss else output.loss
                scale = 2.0**130 if step < setup.skipped else 1.0
                scaler.scale(loss * scale).backward() if setup.skipped else loss.backward()
            scaler.step(optimizer) if setup.skipped else optimizer.step()
            scaler.update(1.0) if setup.skipped else None
            probe.step(learning_rate=rate)
            optimizer.zero_grad()
        assert not probe.hooks.problem
    return looks(folder) if probe.ranks.rank == 0 else []


def step_in_backward(weight: nn.Parameter, setup: Setup) -> None:
    optimizer = setup.optimizer([weight], lr=setup.rates[0])

    def step(weight: nn.Parameter) -> None:
        optimizer.step()
        weight.grad = None

    weight.register_post_accumulate_grad_hook(step)


def clear_as_lomo(weight: nn.Parameter, setup: Setup) -> None:
    """A hook of the tensor uses the gradient, and a later one clears it."""
    clear = lambda: setattr(weight, "grad", None)  # noqa: E731
    engine = torch.autograd.Variable._execution_engine
    weight.register_hook(lambda grad: engine.queue_callback(clear))


def looks(folder: Path) -> list[Any]:
    """``(looked, still)`` of every logged step and layer; ``None`` without a conclusion."""
    lines = [line["router"] for line in records(folder)]
    none = [None] * len(records(folder)[0]["tokens_per_expert"])
    pairs = (
        zip(line.get("looked_tensors", none), line.get("still_tensors", none), strict=True)
        for line in lines
    )
    return [[None if looked is None else (looked, still) for looked, still in row] for row in pairs]


def lora(*modules: str, parameters: Sequence[str] = (), model: Any = None, **more: Any) -> Any:
    def made() -> Any:
        from peft import LoraConfig, get_peft_model

        targets = {"target_modules": [*modules], "target_parameters": [*parameters] or None}
        return get_peft_model((model or small_mixtral)(), LoraConfig(**{"r": 2} | targets | more))

    return made


LISTED = [f"{layer}.experts.{expert}" for layer in (1, 2) for expert in range(EXPERTS)]
FUSED = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"


def cross_entropy(output: Any, ids: Tensor) -> Tensor:
    logits = output if isinstance(output, Tensor) else output.logits
    return nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten() % logits.shape[-1])


def changed(change: Callable[[Any], Any], make: Callable[[], Any] = small_mixtral) -> Any:
    def made() -> Any:
        model = make()
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        for layer in inner.model.layers if hasattr(inner, "model") else inner.layers[1:]:
            change(layer)
        return model

    return made


def zeroed(layer: Any) -> None:
    nn.init.zeros_(layer.mlp.experts.down_proj)
    nn.init.zeros_(layer.self_attn.o_proj.weight)


def with_dead_experts(layer: Any) -> None:
    hook = lambda module, args, out: (out[0], out[1], out[2] % 4)  # noqa: E731
    layer.mlp.gate.register_forward_hook(hook)


def without_loss(layer: Any) -> None:
    """Only the second half of a sequence, which has a loss, chooses the last four."""

    def choose(module: Any, args: Any, out: Any) -> Any:
        half_T1 = (torch.arange(len(out[2])) % 64 >= 32).long()[:, None]
        return out[0], out[1], out[2] % 4 + 4 * half_T1

    layer.mlp.gate.register_forward_hook(choose)


def frozen_later(layer: Any) -> None:
    passes = iter(range(100))
    hook = lambda module, args: module.requires_grad_(next(passes) < 2) and None  # noqa: E731
    layer.mlp.experts.register_forward_pre_hook(hook)


def checkpointed(reentrant: bool) -> Any:
    model = small_mixtral()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    return model


HEALTHY = {
    "full": (Setup(), STACKS + 1),
    "no labels": (Setup(own_loss=cross_entropy, labels=False), STACKS + 1),
    "lists": (Setup(Model, own_loss=cross_entropy, labels=False), 2 * EXPERTS + 1),
    "attention LoRA": (Setup(lora("q_proj", "v_proj")), None),
    "expert LoRA": (Setup(lora("q_proj", parameters=FUSED)), 2),
    "expert LoRA only": (Setup(lora(parameters=FUSED, r=1)), 2),
    "LoRA on lists": (Setup(lora("embed", *LISTED, model=Model), own_loss=cross_entropy), EXPERTS),
    "routers in full": (Setup(lora("q_proj", modules_to_save=["gate"])), 1),
    "router LoRA": (Setup(lora("q_proj", parameters=["mlp.gate.weight"])), 1),
    "frozen routers": (Setup(changed(lambda one: one.mlp.gate.requires_grad_(False))), STACKS),
    "accumulation": (Setup(accumulation=3), STACKS + 1),
    "checkpointing": (Setup(lambda: checkpointed(False)), STACKS + 1),
    "reentrant": (Setup(lambda: checkpointed(True)), STACKS + 1),
    "bf16": (Setup(lambda: small_mixtral().bfloat16()), STACKS + 1),
    "skipped": (Setup(skipped=2), STACKS + 1),
    "zeros": (Setup(changed(zeroed)), STACKS + 1),
    "zeros, rate 0": (Setup(changed(zeroed), rates=(0, 0, 1e-3)), STACKS + 1),
    "no loss": (Setup(changed(without_loss), with_loss=0.5), STACKS // 2 + 1),
    "few with loss": (Setup(with_loss=0.1), None),
    "dead experts": (Setup(changed(with_dead_experts)), STACKS // 2 + 1),
    "fused": (Setup(options={"fused": True}), STACKS + 1),
    "in backward": (Setup(in_backward=step_in_backward), None),
    "LOMO": (Setup(in_backward=clear_as_lomo), None),
    "frozen later": (Setup(changed(frozen_later)), 1),
    "every second": (Setup(every=2), STACKS + 1),
    "equal rewards": (Setup(own_loss=lambda output, ids: 0 * output.logits.sum()), None),
    "aux": (Setup(own_loss=lambda out, _: out.aux_loss + 0 * out.logits.sum(), labels=False), None),
    "only aux, labels": (Setup(own_loss=lambda out, ids: out.aux_loss + 0 * out.loss), None),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_nothing_is_still_in_a_healthy_training(name: str, tmp_path: Path) -> None:
    setup, looked = HEALTHY[name]
    found = run(setup, tmp_path)
    assert not any(one and one[1] for row in found for one in row)
    if looked is not None:
        assert found[-1] == [(looked, 0)] * len(found[-1])


def without_gradients(layer: Any) -> None:
    layer.mlp.experts.forward = torch.no_grad()(layer.mlp.experts.forward)


def cut_off(layer: Any) -> None:
    hook = lambda module, args, out: out.detach()  # noqa: E731
    layer.mlp.register_forward_hook(hook)


def base_weights_only(layer: Any) -> None:
    """The forward ignores the adapters of the experts, as fused kernels do."""
    outer = layer.mlp.experts
    outer.forward = lambda *given: outer.base_layer.base_layer(*given)


def one_expert_detached(layer: Any) -> None:
    experts = layer.experts if hasattr(layer, "experts") else layer.mlp.experts
    experts[2].register_forward_hook(lambda module, args, out: out.detach())


STILL = {
    "adapters ignored": (Setup(changed(base_weights_only, lora("q_proj", parameters=FUSED))), 2, 2),
    "no_grad": (Setup(changed(without_gradients)), STACKS + 1, STACKS),
    "detach": (Setup(changed(cut_off)), STACKS + 1, STACKS),
    "detach, no labels": (Setup(changed(cut_off), own_loss=cross_entropy, labels=False), 17, 17),
    "one expert": (Setup(changed(one_expert_detached, Model), own_loss=cross_entropy), 13, 2),
}


@pytest.mark.parametrize("name", STILL)
def test_what_gets_no_gradient_is_still_at_the_first_three_looks(name: str, tmp_path: Path) -> None:
    setup, looked, still = STILL[name]
    found = run(setup, tmp_path)
    assert found[2:5] == [[(looked, still)] * 2] * 3


@pytest.mark.parametrize("still", [0, 2])
def test_gradients_of_trainers_are_read_before_they_are_cleared(still: int, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from tests.probe.test_real_trainers import settings

    make = lora("q_proj", parameters=FUSED, lora_dropout=0.0)
    model = (changed(base_weights_only, make) if still else make)()
    rows = Dataset.from_list([{"text": TEXT[at : at + 60]} for at in range(0, 20_000, 60)])
    sizes = {"max_steps": 5, "max_length": 32, "per_device_train_batch_size": 16}
    SFTTrainer(
        model, SFTConfig(**settings(tmp_path, **sizes)),
        train_dataset=rows, processing_class=tokenizer(),
        callbacks=[MicroscopeCallback(tmp_path / "logs")],
    ).train()  # fmt: skip
    found = looks(tmp_path / "logs" / "run")
    assert found[2:] == [[(2, still)] * 2] * 3


@pytest.mark.parametrize(("rate", "unchanged"), [(1e-3, 0), (1e-12, STACKS + 1), (None, 0)])
def test_weights_that_stay_the_same_for_a_hundred_steps_are_counted_if_a_rate_is_known(
    rate: float | None, unchanged: int, tmp_path: Path
) -> None:
    model = small_mixtral().bfloat16().train()
    model.model.layers[1].mlp.experts.requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate or 1e-3)
    ids = torch.randint(3, 49, (8, 64), generator=torch.Generator().manual_seed(0))
    with attach(model, tmp_path) as probe:
        for _ in range(100):
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            probe.step(**({} if rate is None else {"learning_rate": rate}))
            optimizer.zero_grad()
    line = records(tmp_path)[-1]["router"]
    assert (line.get("unchanged_tensors") or [None])[0] == unchanged


def train(model: Any, left_out: str, folder: Path, steps: int = 20, turns: bool = False) -> Any:
    """What STILL found, without a learning rate; the layers train in turns of ten steps."""
    held = [weight for name, weight in model.named_parameters() if not re.search(left_out, name)]
    optimizer = torch.optim.AdamW([p for p in held if p.requires_grad], lr=1e-3, weight_decay=0.0)
    routers = ROUTERS if isinstance(model, Model) else None
    with attach(model.train(), folder, routers=routers) as probe:
        for step in range(1, steps + 1):
            for number, layer in enumerate(model.model.layers if turns else ()):
                layer.requires_grad_(step == 1 or step // 10 % 2 == number)
            ids = torch.randint(3, 49, (8, 64))
            loss = cross_entropy(model(input_ids=ids), ids)
            loss.backward()
            optimizer.step()
            probe.step(loss=loss)
            model.zero_grad()
    episodes = open_log(folder / "metrics.jsonl").diagnosis.episodes
    return [e for e in episodes if e.rule == "STILL"]


WITH_HEAD: dict[str, Any] = {"parameters": FUSED, "modules_to_save": ["lm_head"]}


@pytest.fixture
def ten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(still, "EVERY", 10)


@pytest.mark.parametrize(
    ("make", "left_out", "severity", "tensors", "alarm"),
    [
        (small_mixtral, "layers.0.mlp.experts", Severity.CRITICAL, {"L0": 16}, 10),
        (small_mixtral, "layers.0.", Severity.INFO, {"L0": 17}, 10),  # a layer that rests
        (small_mixtral, "nothing", None, {}, 0),
        (small_mixtral, "gate.weight", Severity.WARN, {"L0": 1, "L1": 1}, 10),
        (lambda: small_mixtral().bfloat16(), "gate.weight", None, {}, 0),  # or lost in rounding
        (Model, "experts", Severity.CRITICAL, {"L1": 12, "L2": 12}, 10),  # the biases, too
        (Model, "experts.[012]", Severity.WARN, {"L1": 6, "L2": 6}, 10),
        (lora(**WITH_HEAD), "lora_", Severity.WARN, {"L0": 2, "L1": 2}, 10),
        (lora("q_proj", **WITH_HEAD), "lora_", Severity.WARN, {"L0": 2, "L1": 2}, 20),
    ],
)
def test_what_the_optimizer_lacks_is_found_without_a_learning_rate(
    make: Any, left_out: str, severity: Any, tensors: Any, alarm: int, tmp_path: Path, ten: None
) -> None:
    found = train(make(), left_out, tmp_path)
    assert {e.router.name: e.value for e in found} == tensors
    assert {(e.severity, e.alarm) for e in found} == ({(severity, alarm)} if tensors else set())


def test_layers_that_train_in_turns_are_no_warning(tmp_path: Path, ten: None) -> None:
    found = train(small_mixtral(), "nothing", tmp_path, steps=60, turns=True)
    assert {e.severity for e in found} == {Severity.INFO}


def test_lr_is_logged_as_the_learning_rate(tmp_path: Path) -> None:
    model = small_mixtral().train()
    with attach(model, tmp_path) as probe:
        model(input_ids=torch.arange(512).view(8, 64))
        probe.step(lr=1e-3)
    (line,) = records(tmp_path)
    assert (line["learning_rate"], "lr" in line) == (1e-3, False)


@pytest.mark.parametrize("holder", ["main_grad", "ds_id"])
def test_gradients_that_others_keep_are_not_looked_for(
    holder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = changed(without_gradients)()
    for layer in model.model.layers:
        for weight in layer.mlp.parameters():
            setattr(weight, holder, torch.ones(1))
    assert run(Setup(), tmp_path, model) == [[None, None]] * 5
    assert caplog.text.count("ZeRO-3 keeps gradients in partitions") == (holder == "ds_id")


def test_gradients_that_are_cleared_too_early_are_told(tmp_path: Path, caplog: Any) -> None:
    model = small_mixtral().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with attach(model, tmp_path) as probe:
        for _ in range(6):
            model(input_ids=(ids := torch.randint(3, 49, (8, 64))), labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            probe.step(learning_rate=0.1)
    assert caplog.text.count("if they are cleared before probe.step") == 1


def test_a_look_that_fails_ends_the_looks_and_not_the_counting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(still, "_largest", None)
    assert run(Setup(), tmp_path) == [[None, None]] * 5
    assert not any("incomplete" in line for line in records(tmp_path))
    assert caplog.text.count("gradients are not looked at any more") == 1


EXPERT, OTHER = (still.Owner(1, "experts", "w", number) for number in (0, 1))
ROUTER, NONE = still.Owner(1, "router", "gate"), still.Judged()
MOVES, STANDS = {EXPERT: True, ROUTER: True}, {EXPERT: False, ROUTER: True}


@pytest.mark.parametrize(
    ("given", "expected"),  # tensors, tokens, whether labels are known and a weight behind moves
    [
        ((STANDS, [50, 0], True, False, None), still.Judged(2, 1)),
        ((STANDS, [49, 50], True, False, None), still.Judged(1, 0)),  # the router by any expert
        ((STANDS, [49, 49], True, False, None), NONE),
        ((MOVES, [50, 0], False, False, None), still.Judged(2, 0)),
        ((STANDS, [50, 0], False, True, None), still.Judged(2, 1)),
        ((STANDS, [50, 0], False, False, None), NONE),
        (({**STANDS, OTHER: True}, [50, 0], False, True, None), NONE),
        ((MOVES, [50, 0], True, True, {EXPERT, OTHER}), still.Judged(2, 0, 1)),
    ],
)
def test_a_router_is_judged_by_tokens_labels_and_what_is_behind(given: Any, expected: Any) -> None:
    assert still.judge_row(*given) == expected


def test_a_look_is_due_three_times_at_the_start_and_at_every_hundredth_logged_step() -> None:
    assert [step for step in range(1, 301) if still.is_due(step)] == [3, 4, 5, 100, 200, 300]


def test_unknown_gradients_are_not_judged() -> None:
    moving = {EXPERT: 0.0, OTHER: float("nan"), ROUTER: 2.0, still.Owner(1): 1.0}
    assert still.by_place(moving) == {1: STANDS}


def test_a_sample_may_be_of_weights_on_several_devices() -> None:
    assert len(still._sample_of([torch.ones(3, device="meta"), torch.ones(2)])[0]) == 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_stack", [False, True])
def test_the_largest_of_a_gradient_is_its_maximum_norm(dtype: Any, is_stack: bool) -> None:
    """Also where a square would underflow."""
    rows = [[0, -0.0], [1e-38, 0], [-1e-38, -2], [torch.nan, 1], [-torch.inf, 3]]
    grad = torch.tensor(rows, dtype=dtype)
    found = still._largest([grad] if is_stack else [*grad], is_stack)
    expected = torch.linalg.vector_norm(grad, torch.inf, dim=1)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_nothing_is_looked_at_in_evaluation(tmp_path: Path) -> None:
    model, ids = small_mixtral().eval(), torch.arange(512).view(8, 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with attach(model, tmp_path, mode="eval") as probe:
        for _ in range(4):
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            probe.step()
    assert looks(tmp_path) == [[None, None]] * 4
