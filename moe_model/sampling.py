"""Sampling: the rules, a draw, and the generation loop.

The rules are those of ``generate`` in transformers, in its order: temperature, top k, top p.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moe_model.decoder import Decoder, Drafter
from moe_model.model import LanguageModel


@dataclass(frozen=True, slots=True)
class SamplingRules:
    temperature: float = 0.8
    """Divides the logits; 0 always takes the most likely token."""
    top_k: int = 0
    """Sample from this many most likely tokens; 0 for all."""
    top_p: float = 0.95
    """Sample from the most likely tokens whose probabilities add up to this."""

    def check(self) -> None:
        """``ValueError`` names the first option that is out of range."""
        heat = self.temperature
        low, high = 1e-6, 1e6  # beyond, fp32 overflows
        for name, value, is_possible, choice in (
            ("temperature", heat, heat == 0 or low <= heat <= high, "0, or 1e-6 to 1e6"),
            ("top-k", self.top_k, self.top_k >= 0, "1 or more, or 0 for all tokens"),
            ("top-p", self.top_p, low <= self.top_p <= 1, "1e-6 to 1"),
        ):
            if not is_possible:
                raise ValueError(f"{name} {value} is out of range: choose {choice}.")

    def pick(self, logits_V: Tensor, generator: torch.Generator) -> int:
        """The next token by its logits; ``ValueError`` if the model has diverged.

        ``generator`` advances by one draw, unless the temperature is 0.
        """
        if not logits_V.isfinite().all():
            raise ValueError(
                "the logits are not finite: the model has diverged; use another checkpoint."
            )
        if self.temperature == 0:
            return int(logits_V.argmax())
        probability_V, ids_V = self.probabilities(logits_V)
        return int(ids_V[torch.multinomial(probability_V, 1, generator=generator)])

    def probabilities(self, logits_V: Tensor) -> tuple[Tensor, Tensor]:
        """Unnormalised probabilities of the next token, and the token ids, most likely first. The
        temperature must not be 0."""
        # The highest becomes 0, so that no temperature overflows it.
        scores_V = (logits_V - logits_V.max()) / self.temperature
        if 0 < self.top_k < len(scores_V):
            scores_V = scores_V.masked_fill(
                scores_V < scores_V.topk(self.top_k).values[-1], float("-inf")
            )
        probability_V, ids_V = scores_V.softmax(dim=-1).sort(descending=True)
        if self.top_p < 1:
            # A token is kept while the mass before it is below top_p: the likeliest always is.
            mass_before_V = probability_V.cumsum(dim=-1) - probability_V
            probability_V = probability_V.masked_fill(mass_before_V >= self.top_p, 0.0)
        return probability_V, ids_V


class Sampler:
    """Iterates over the token ids that follow a prompt, as they are generated.

    With drafts, one pass reads the last token together with a draft of the next one. Every token is
    still sampled from the logits of the model, in the same order and with the same draws, so the
    text is the same; if the draft was right, the pass gives two tokens.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompt_S: Tensor,
        *,
        max_new_tokens: int,
        seed: int = 0,
        weights: torch.dtype | None = None,
        draft: bool = False,
        stop_at: Collection[int] = (),
        **rules: Any,
    ) -> None:
        """No forward pass runs yet. ``ValueError`` if the model cannot ``draft``.

        Args:
            model: In evaluation mode during iteration, then restored.
            prompt_S: At least one token id, int64; only the last tokens that fit the context count.
            seed: Of a separate generator, so that sampling never affects training.
            weights: See ``Decoder``; by default fp32 on a CPU.
            stop_at: The tokens that end a text; they are not yielded.
            rules: Fields of :class:`SamplingRules`.
        """
        if not len(prompt_S):
            raise ValueError("the prompt has 0 tokens: it needs at least one.")
        on_cpu = model.embed_tokens.weight.device.type == "cpu"
        if weights is None and on_cpu:
            weights = torch.float32
        self.given = 0
        """Tokens yielded so far."""
        self.passes = 0
        """Forward passes so far, the prompt included."""
        self._model = model
        self._left = max_new_tokens
        self._stop_at = stop_at
        self._rules = SamplingRules(**rules)
        self._rules.check()
        self._generator = torch.Generator().manual_seed(seed)
        self._context = model.config.max_position_embeddings
        self._ids: list[int] = prompt_S.tolist()
        length = min(self._context, len(self._ids) + max_new_tokens)
        self._decoder = Decoder(model, length, weights=weights)
        self._drafter = Drafter(self._decoder) if draft else None

    def __iter__(self) -> Iterator[int]:
        was_training = self._model.training
        self._model.eval()
        try:
            tokens = self._context  # iterated again, it continues
            while self._left > 0:
                for token in self._until_full(self._ids[-tokens:]):
                    if token in self._stop_at:
                        return
                    self.given += 1
                    yield token
                # The context is full: restart from its second half, at position 0.
                tokens = max(1, self._context // 2)
        finally:
            self._model.train(was_training)

    def _until_full(self, ids: list[int]) -> Iterator[int]:
        drafter = self._drafter
        self._decoder.cache.used = 0
        if drafter is not None:
            drafter.cache.used = 0
        following = ids[1:]
        logits_SV, unseen_SD = self._read(ids)
        token = self._pick(logits_SV[-1])
        yield token
        while self._left and self._room:
            # What the drafter has not read: hidden states, and the token after each.
            following.append(token)
            guess = None
            if drafter is not None and self._room >= 2:
                guess = drafter.propose(unseen_SD, following)
            logits_SV, unseen_SD = self._read([token] if guess is None else [token, guess])
            token = self._pick(logits_SV[0])
            yield token
            if guess is None:
                following = []
            elif token != guess or not self._left:
                self._decoder.cache.used -= 1  # the draft was wrong
                unseen_SD = unseen_SD[:1]
                following = []
            else:
                following = [token]
                token = self._pick(logits_SV[1])
                yield token

    def _read(self, ids: list[int]) -> tuple[Tensor, Tensor]:
        self.passes += 1
        return self._decoder.read(ids)

    def _pick(self, logits_V: Tensor) -> int:
        token = self._rules.pick(logits_V.cpu(), self._generator)
        self._ids.append(token)
        self._left -= 1
        return token

    @property
    def _room(self) -> int:
        """Tokens that can still be read: two at least as long as the context is not full, since
        the last token of a text is never read."""
        return len(self._decoder.cache) - self._decoder.cache.used


def generate(model: LanguageModel, prompt_S: Tensor, **options: Any) -> list[int]:
    """The token ids of a :class:`Sampler`, which takes ``options``, all at once.

    ``ValueError`` if an option is out of range or the model has diverged.
    """
    return list(Sampler(model, prompt_S, **options))
