"""Generated texts: reproducible, the same with drafts, ended where they must be."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from moe_model.sampling import Sampler, SamplingRules, generate
from tests.model.conftest import make_model

ALL_RULES = {"temperature": 1.5, "top_k": 9, "seed": 5}


def test_same_seed_same_text_and_the_global_generator_is_left_alone(ids_BS: Tensor) -> None:
    model = make_model()
    before = torch.get_rng_state()
    first = generate(model, ids_BS[0], max_new_tokens=8, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    assert generate(model, ids_BS[0], max_new_tokens=8, seed=3) == first
    assert generate(model, ids_BS[0], max_new_tokens=8, seed=4) != first
    assert len(first) == 8


@pytest.mark.parametrize("temperature", [0, 1.0], ids=["greedy", "sampled"])
def test_cached_tokens_equal_those_of_full_passes(temperature: float, ids_BS: Tensor) -> None:
    model = make_model().eval()
    ids = ids_BS[0].tolist()
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        with torch.no_grad():
            logits_V = model(torch.tensor([ids])).logits_BSV[0, -1]
        ids.append(SamplingRules(temperature).pick(logits_V, generator))
    options = {"max_new_tokens": 20, "temperature": temperature, "seed": 3}
    assert ids[24:] == generate(model, ids_BS[0], **options)


def test_a_context_longer_than_the_model_is_cut_on_the_left() -> None:
    model = make_model()
    long = torch.arange(90) % 97
    whole = generate(model, long, max_new_tokens=3)
    assert whole == generate(model, long[-64:], max_new_tokens=3)


def test_a_full_context_restarts_from_its_second_half() -> None:
    model = make_model()
    prompt = torch.arange(60) % 97
    text = [*prompt.tolist(), *generate(model, prompt, max_new_tokens=12, temperature=0)]
    # Tokens 61 to 64 fill the context and give the 65th; then 32 remain.
    expected = generate(model, torch.tensor(text[65 - 32 : 65]), max_new_tokens=7, temperature=0)
    assert text[65:] == expected


@pytest.mark.parametrize(
    "rules",
    [{"temperature": 0}, {"temperature": 1.0, "seed": 1}, {"temperature": 1.0}, ALL_RULES],
    ids=["greedy", "sampled", "another seed", "every rule"],
)
def test_drafting_gives_exactly_the_same_text(rules: dict[str, Any]) -> None:
    """Beyond the end of the context too."""
    model = make_model(num_nextn_predict_layers=1)
    options = {"max_new_tokens": 90, **rules}
    prompt = torch.arange(9)
    assert generate(model, prompt, draft=True, **options) == generate(model, prompt, **options)


def test_right_drafts_save_passes() -> None:
    """A model whose head prefers one token after anything: every guess is right."""
    model = make_model(num_nextn_predict_layers=1)
    with torch.no_grad():
        model.norm.weight.zero_()[0] = 1
        model.mtp[0].norm.weight.zero_()[0] = 1
        model.lm_head.weight[:, 0] = 0
    options: dict[str, Any] = {"temperature": 0, "draft": True}
    for tokens in (40, 41):
        sampler = Sampler(model, torch.tensor([1, 2, 3]), max_new_tokens=tokens, **options)
        assert len(list(sampler)) == tokens
        assert sampler.passes == 21


@pytest.mark.parametrize("draft", [False, True])
def test_a_stop_token_ends_the_text(draft: bool) -> None:
    model = make_model(num_nextn_predict_layers=1).train()
    options = {"max_new_tokens": 40, "seed": 1, "draft": draft}
    text = generate(model, torch.tensor([1, 2]), **options)
    end = text[25]
    before = text[: text.index(end)]
    assert generate(model, torch.tensor([1, 2]), stop_at=(97, end), **options) == before
    assert model.training


@pytest.mark.parametrize("draft", [False, True])
def test_an_interrupted_text_is_continued(draft: bool) -> None:
    model = make_model(num_nextn_predict_layers=1)
    options = {"max_new_tokens": 20, "temperature": 0, "draft": draft}
    whole = generate(model, torch.tensor([1, 2]), **options)
    sampler = Sampler(model, torch.tensor([1, 2]), **options)
    first = [token for token, _ in zip(sampler, range(5), strict=False)]
    assert whole[: len(first)] == first
    rest = list(sampler)
    assert whole[-len(rest) :] == rest


def test_generating_with_a_diverged_model_is_a_clear_error() -> None:
    model = make_model()
    with torch.no_grad():
        model.norm.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="the model has diverged"):
        generate(model, torch.tensor([1]), max_new_tokens=1)


class Allocated(TorchDispatchMode):
    """Adds up the bytes of all tensors that are made meanwhile, views left out."""

    nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not func.is_view:
            self.nbytes += result.untyped_storage().nbytes()
        return result


@pytest.mark.parametrize("draft", [False, True], ids=["one by one", "drafting"])
def test_generating_allocates_the_same_for_every_length_of_the_context(draft: bool) -> None:
    sizes = []
    for context in (64, 163_840):
        model = make_model(max_position_embeddings=context, num_nextn_predict_layers=1)
        with Allocated() as allocated:
            generate(model, torch.arange(9), max_new_tokens=2, temperature=0, draft=draft)
        sizes.append(allocated.nbytes)
    assert sizes[0] == sizes[1]
    assert sizes[0] > 1000, "nothing was seen"
