"""The loss in pieces is the loss of torch, and never holds all logits."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from moe_model import model as model_module
from moe_model.model import summed_cross_entropy
from tests.model.conftest import make_model

B, S, D, V = 3, 11, 8, 50


@pytest.mark.parametrize("rows", [5, 33], ids=["in pieces", "in one piece"])
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 3e-6), (torch.bfloat16, 3e-2)])
def test_the_loss_in_pieces_and_its_gradients_are_those_of_torch(
    monkeypatch: pytest.MonkeyPatch, rows: int, dtype: torch.dtype, most: float
) -> None:
    pieces, run = [], model_module._cross_entropy
    monkeypatch.setattr(model_module, "MOST_LOGITS", rows * V + 1)
    monkeypatch.setattr(model_module, "_cross_entropy", lambda *a: pieces.append(1) or run(*a))
    generator = torch.Generator().manual_seed(0)
    hidden_BSD = torch.randn(B, S, D, generator=generator).to(dtype).requires_grad_()
    head_VD = torch.randn(V, D, generator=generator).to(dtype).requires_grad_()
    targets_BS = torch.randint(0, V, (B, S), generator=generator)
    targets_BS[1, 3:7] = -100
    logits_TV = (hidden_BSD @ head_VD.t()).float().flatten(0, 1)
    theirs = F.cross_entropy(logits_TV, targets_BS.flatten(), reduction="sum")
    ours = summed_cross_entropy(hidden_BSD, head_VD, targets_BS)
    assert ours.item() == pytest.approx(theirs.item(), rel=most)
    grads = (torch.autograd.grad(loss, (hidden_BSD, head_VD)) for loss in (ours, theirs))
    for found, expected in zip(*grads, strict=True):
        assert (found - expected).abs().max() <= most * expected.abs().max()
    if rows == 33:
        assert torch.equal(ours, theirs)
    assert len(pieces) == (1 if rows == 33 else 2 * 7), "computed again in the backward pass"


class Largest(TorchDispatchMode):
    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_a_training_pass_never_holds_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither forward nor backward, for the next token or for one further ahead."""
    model = make_model(vocab_size=4001, num_nextn_predict_layers=1).train()
    ids_BN = torch.randint(0, 4001, (4, 34), generator=torch.Generator().manual_seed(0))
    targets = [ids_BN[:, 1:-1], ids_BN[:, 2:]]
    found = {}
    for rows in (16, 1000):
        monkeypatch.setattr(model_module, "MOST_LOGITS", rows * 4001)
        model.zero_grad()
        with Largest() as largest:
            output = model(ids_BN[:, :-2], next_ids=ids_BN[:, 1:-1], targets=targets)
            sum(output.losses).backward()
        assert output.logits_BSV.shape == (4, 0, 4001)
        found[rows] = (largest.elements, [p.grad.clone() for p in model.parameters()])
    # The embedding and its gradient are 32 numbers a word.
    assert found[16][0] == 32 * 4001
    assert found[1000][0] == 4 * 32 * 4001
    for one, other in zip(found[16][1], found[1000][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
