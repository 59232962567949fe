"""``--optimizer muon``: torch's Muon for hidden matrices and experts, AdamW for all else."""

import copy

import torch

from moe_model import LanguageModel, ModelConfig
from moe_model.training.options import Options
from moe_model.training.step import make_optimizer, set_learning_rate
from tests.training.conftest import GetTrained
from tests.training.story import steps

WEIGHT_DECAY = Options().weight_decay
BY_ADAMW = ("embed_tokens", "lm_head", "norm", "router", "mlp.experts.")


def test_hidden_matrices_move_as_with_torchs_muon_and_the_rest_as_with_its_adamw() -> None:
    fields = {"hidden_size": 16, "num_hidden_layers": 2, "moe_intermediate_size": 8}
    config = ModelConfig.preset("tiny", vocab_size=20, num_nextn_predict_layers=1, **fields)
    model = LanguageModel(config)
    twin, before = copy.deepcopy(model), copy.deepcopy(dict(model.named_parameters()))
    named = dict(twin.named_parameters())
    rest = [p for name, p in named.items() if any(part in name for part in BY_ADAMW)]
    muon = torch.optim.Muon(
        [p for p in named.values() if not any(p is other for other in rest)],
        lr=1e-2, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw",
    )  # fmt: skip
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in rest if p.dim() > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in rest if p.dim() == 1], "weight_decay": 0.0},
        ],
        lr=1e-2, betas=(0.9, 0.95), fused=True,
    )  # fmt: skip
    ours = make_optimizer(model, Options(lr=1e-2, optimizer="muon"))
    optimizers = (ours, muon, adamw)
    for step in range(3):
        for each in (model, twin):
            generator = torch.Generator().manual_seed(step)
            for parameter in each.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
        for optimizer in optimizers:
            set_learning_rate(optimizer, 1e-2 / (step + 1))
            optimizer.step()
            optimizer.zero_grad()
    for name, parameter in model.named_parameters():
        if "mlp.experts." not in name:  # the next test
            assert torch.equal(parameter, named[name]), name
        assert not torch.equal(parameter, before[name]), name
        assert parameter.grad is None, name


def test_gate_up_and_down_of_each_expert_move_as_with_torchs_muon_on_each_apart() -> None:
    fields = {"hidden_size": 16, "num_hidden_layers": 2, "moe_intermediate_size": 12}
    model = LanguageModel(ModelConfig.preset("tiny", vocab_size=20, **fields))
    experts = model.layers[1].mlp.experts
    stacks = [experts.down_proj, *experts.gate_up_proj.split(12, dim=1)]
    before = [matrix for stack in stacks for matrix in stack.detach().clone()]
    apart = [torch.nn.Parameter(matrix.clone()) for matrix in before]
    optimizers: tuple[torch.optim.Optimizer, ...] = (
        make_optimizer(model, Options(lr=1e-2, optimizer="muon")),
        torch.optim.Muon(apart, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(3):
        for parameter in experts.parameters():
            parameter.grad = torch.randn_like(parameter)
        gradients = [experts.down_proj.grad, *experts.gate_up_proj.grad.split(12, dim=1)]
        for one, gradient in zip(apart, (m for stack in gradients for m in stack), strict=True):
            one.grad = gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    found = [matrix for stack in stacks for matrix in stack.detach()]
    for one, other, start in zip(found, apart, before, strict=True):
        # A product of a batch rounds differently in bf16.
        assert (one - other).abs().max() < 0.02 * (other - start).abs().max()


def test_muon_learns_in_fp16_too(trained: GetTrained) -> None:
    run = trained("--steps=30", "--optimizer=muon", "--lr=1e-2", "--dtype=fp16")
    losses = [record["loss"] for record in steps(run.log)]
    assert losses[-1] < losses[0] - 0.5
