"""Sampling: the rules, a draw, and the generation loops for one text and for several together.

The rules are those of ``generate`` in transformers, in its order: repetition penalty, temperature,
top k, top p, min p. The past is kept in a latent cache as long as prompt and answer need.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moe_model.attention import LatentCache
from moe_model.decoder import Decoder, Drafter
from moe_model.model import LanguageModel


@dataclass(frozen=True, slots=True)
class SamplingRules:
    """Sampling options."""

    temperature: float = 0.8
    """Divides the logits; 0 always takes the most likely token."""
    top_k: int = 0
    """Sample from this many most likely tokens; 0 for all."""
    top_p: float = 0.95
    """Sample from the most likely tokens whose probabilities add up to this."""
    min_p: float = 0.0
    """Exclude tokens less likely than this fraction of the highest probability."""
    repetition_penalty: float = 1.0
    """Above 1, makes every token of the text, prompt included, less likely: positive logits are
    divided by it, negative ones multiplied (Keskar et al., 2019)."""

    def check(self) -> None:
        """Raise ``ValueError`` with name, value and range if one is out of range."""
        infinity = float("inf")
        for name, value, is_possible, choice in (
            ("temperature", self.temperature, 0 <= self.temperature < infinity, "0 or more"),
            ("top-k", self.top_k, self.top_k >= 0, "1 or more, or 0 for all tokens"),
            ("top-p", self.top_p, 0 < self.top_p <= 1, "above 0, up to 1"),
            ("min-p", self.min_p, 0 <= self.min_p <= 1, "0 to 1"),
            (
                "repetition-penalty",
                self.repetition_penalty,
                0 < self.repetition_penalty < infinity,
                "above 0; 1 changes nothing",
            ),
        ):
            if not is_possible:
                raise ValueError(f"{name} {value} is out of range: choose {choice}.")

    def pick(self, logits_V: Tensor, ids: list[int], generator: torch.Generator) -> int:
        """The next token id after ``ids``, drawn from :meth:`probabilities`.

        Raises:
            ValueError: If the model has diverged.
        """
        if not logits_V.isfinite().all():
            raise ValueError(
                "the logits are not finite: the model has diverged; use another checkpoint."
            )
        if self.temperature == 0:
            return int(self._penalised(logits_V, ids).argmax())
        probability_V, ids_V = self.probabilities(logits_V, ids)
        return int(ids_V[torch.multinomial(probability_V, 1, generator=generator)])

    def probabilities(self, logits_V: Tensor, ids: list[int]) -> tuple[Tensor, Tensor]:
        """Unnormalised probabilities of the next token after ``ids``, and the token ids, most
        likely first. The temperature must not be 0."""
        logits_V = self._penalised(logits_V, ids)
        # The highest is 0, whatever it is divided by.
        scores_V = (logits_V - logits_V.max()) / self.temperature
        if 0 < self.top_k < len(scores_V):
            scores_V = scores_V.masked_fill(
                scores_V < scores_V.topk(self.top_k).values[-1], float("-inf")
            )
        probability_V, ids_V = scores_V.softmax(dim=-1).sort(descending=True)
        left_out_V = probability_V < self.min_p * probability_V[0]
        if self.top_p < 1:
            # A token stays while the mass before it is below top_p: the likeliest always stays.
            mass_before_V = probability_V.cumsum(dim=-1) - probability_V
            left_out_V |= mass_before_V >= self.top_p
        return probability_V.masked_fill(left_out_V, 0.0), ids_V

    def _penalised(self, logits_V: Tensor, ids: list[int]) -> Tensor:
        if self.repetition_penalty == 1:
            return logits_V
        seen_N = torch.tensor(ids, device=logits_V.device)
        seen = logits_V[seen_N]
        penalty = self.repetition_penalty
        return logits_V.index_put((seen_N,), torch.where(seen < 0, seen * penalty, seen / penalty))


class Sampler:
    """Iterates over the token ids that follow a prompt, as they are generated.

    With drafts, one pass reads the last token together with a draft of the next one, from the
    model's multi-token prediction. Every token is still sampled from the logits of the model, in
    the same order and with the same draws, so the text is the same; if the draft was right, the
    pass gives two tokens.
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
        """Prepare; no forward pass runs yet.

        Args:
            model: In evaluation mode during iteration, then restored.
            prompt_S: At least one token id, int64; only the last tokens that fit the context count.
            max_new_tokens: How many tokens to sample.
            seed: Seed of a separate generator, so that sampling never affects training.
            weights: fp32 or fp16, see :class:`~moe_model.decoder.Decoder`; by default fp32 on a
                CPU.
            draft: Draft ahead; ``ValueError`` if the model cannot.
            stop_at: The tokens that end a text; they are not yielded.
            rules: Fields of :class:`SamplingRules`.
        """
        if not len(prompt_S):
            raise ValueError("the prompt has 0 tokens: it needs at least one.")
        on_cpu = model.embed_tokens.weight.device.type == "cpu"
        if weights is None and on_cpu and not model.sharded:
            weights = torch.float32
        self.given = 0
        """Tokens yielded so far."""
        self.passes = 0
        """Forward passes so far, the prompt included."""
        self._model = model
        self._left, self._stop_at = max_new_tokens, stop_at
        self._rules = SamplingRules(**rules)
        self._rules.check()
        self._generator = torch.Generator().manual_seed(seed)
        self._context = model.config.max_position_embeddings
        self._ids = prompt_S.tolist()[-self._context :]
        length = min(self._context, len(self._ids) + max_new_tokens)
        self._decoder = Decoder(model, length, weights=weights)
        self._drafter = Drafter(self._decoder) if draft else None

    def __iter__(self) -> Iterator[int]:
        was_training = self._model.training
        self._model.eval()
        try:
            self._start_over(self._context)  # iterated again, it continues
            while self._left > 0:
                for token in self._until_full():
                    if token in self._stop_at:
                        return
                    self.given += 1
                    yield token
                # The context is full: restart from its second half, at position 0.
                self._start_over(max(1, self._context // 2))
        finally:
            self._model.train(was_training)

    def _until_full(self) -> Iterator[int]:
        """Tokens until there are enough, or the context is full."""
        drafter = self._drafter
        following = self._ids[1:]
        logits_SV, unseen_SD = self._read(self._ids)
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
                self._decoder.forget(1)
                unseen_SD, following = unseen_SD[:1], []
            else:
                following = [token]
                token = self._pick(logits_SV[1])
                yield token

    def _start_over(self, tokens: int) -> None:
        """Clear the cache and keep only the last ``tokens``."""
        self._ids = self._ids[-tokens:]
        self._decoder.forget(self._decoder.cache.used)
        if self._drafter is not None:
            self._drafter.forget_all()

    def _read(self, ids: list[int]) -> tuple[Tensor, Tensor]:
        self.passes += 1
        return self._decoder.read(ids)

    def _pick(self, logits_V: Tensor) -> int:
        token = self._rules.pick(logits_V.cpu(), self._ids, self._generator)
        self._ids.append(token)
        self._left -= 1
        return token

    @property
    def _room(self) -> int:
        """Tokens that can still be read: two at least as long as the context is not full, since
        the last token of a text is never read."""
        return len(self._decoder.cache) - self._decoder.cache.used


def generate(model: LanguageModel, prompt_S: Tensor, **options: Any) -> list[int]:
    """The token ids of a :class:`Sampler`, all at once."""
    return list(Sampler(model, prompt_S, **options))


class BatchSampler:
    """Iterates over pairs: the index of a prompt, and its next token."""

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[Tensor],
        *,
        max_new_tokens: int,
        seed: int = 0,
        stop_at: Collection[int] = (),
        **rules: Any,
    ) -> None:
        """Prepare; no forward pass runs yet.

        Args:
            model: In evaluation mode during iteration, then restored.
            prompts: Each at least one token id, int64; only the last tokens that fit the context
                count.
            max_new_tokens: How many tokens to sample for each.
            seed: Seed of every text's generator, so that each text is the same as alone.
            stop_at: The tokens that end a text; they are not yielded.
            rules: Fields of :class:`~moe_model.sampling.SamplingRules`.
        """
        if not all(len(prompt_S) for prompt_S in prompts):
            raise ValueError("a prompt has 0 tokens: each needs at least one.")
        self.given = 0
        """Tokens yielded so far, of all texts."""
        self.passes = 0
        """Forward passes so far."""
        self._model, self._stop_at = model, stop_at
        self._max_new_tokens = max_new_tokens
        self._rules = SamplingRules(**rules)
        self._rules.check()
        self._context = model.config.max_position_embeddings
        self._texts = [
            _Text(number, prompt_S.tolist()[-self._context :], seed)
            for number, prompt_S in enumerate(prompts)
        ]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        was_training = self._model.training
        self._model.eval()
        try:
            yield from self._tokens()
        finally:
            self._model.train(was_training)

    def _tokens(self) -> Iterator[tuple[int, int]]:
        texts, weight = self._texts, self._model.embed_tokens.weight
        longest = max((len(text.ids) for text in texts), default=0)
        cache = LatentCache(
            self._model.config,
            len(texts),
            min(self._context, longest + self._max_new_tokens),
            dtype=weight.dtype,
            device=weight.device,
        )
        while texts and self._max_new_tokens:
            logits_BV = self._read(texts, cache).cpu()
            for text, logits_V in zip(texts, logits_BV, strict=True):
                token = self._rules.pick(logits_V, text.ids, text.generator)
                text.ended = token in self._stop_at
                if not text.ended:
                    text.ids.append(token)
                    text.given += 1
                    self.given += 1
                    yield text.number, token
            going = [
                row
                for row, text in enumerate(texts)
                if not text.ended and text.given < self._max_new_tokens
            ]
            if len(going) < len(texts):
                texts = [texts[row] for row in going]
                cache.keep(going)

    @torch.inference_mode()
    def _read(self, texts: list[_Text], cache: LatentCache) -> Tensor:
        """Next-token logits of every text, ``(B, V)``.

        A text whose context is full restarts from its second half, as a single text does; the
        others are read again with it.
        """
        if 0 < cache.used < len(cache):
            rows, valid_BS = [text.ids[-1:] for text in texts], None
        else:
            cache.used = 0
            for text in texts:
                if len(text.ids) > self._context:
                    text.ids = text.ids[-max(1, self._context // 2) :]
            rows = [text.ids for text in texts]
            length = max(map(len, rows))
            valid_BS = torch.tensor(
                [[i >= length - len(row) for i in range(length)] for row in rows]
            )
            rows = [[0] * (length - len(row)) + row for row in rows]
        self.passes += 1
        device = self._model.embed_tokens.weight.device
        ids_BS = torch.tensor(rows, device=device)
        if valid_BS is not None:
            valid_BS = None if valid_BS.all() else valid_BS.to(device)
        logits_BSV: Tensor = self._model(ids_BS, valid_BS, cache=cache).logits_BSV
        return logits_BSV[:, -1].float()


class _Text:
    """One of the texts: its context and its progress."""

    def __init__(self, number: int, ids: list[int], seed: int) -> None:
        self.number = number
        self.ids = ids
        self.generator = torch.Generator().manual_seed(seed)
        self.given = 0
        self.ended = False


def generate_batch(
    model: LanguageModel, prompts: Sequence[Tensor], **options: Any
) -> list[list[int]]:
    """The token ids of a :class:`BatchSampler`, all at once, a list per prompt."""
    texts: list[list[int]] = [[] for _ in prompts]
    for number, token in BatchSampler(model, prompts, **options):
        texts[number].append(token)
    return texts
