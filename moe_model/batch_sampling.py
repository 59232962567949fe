"""Continue several prompts together: every forward pass reads one token of each.

Shorter prompts are padded on the left, so that all texts grow at the same end. Every text has its
own random generator and context, so it equals the text that its prompt gives alone, up to rounding
of the logits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from moe_model.cache import LatentCache
from moe_model.model import LanguageModel
from moe_model.sampling import SamplingRules


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
