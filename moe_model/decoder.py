"""Token-by-token decoding on a CPU, at memory bandwidth.

A forward pass over one token does two floating-point operations per weight, so its speed depends on
the memory layout of the weights and on the number of small operations between products. A
:class:`Decoder` keeps its own copy of the weights: transposed, those with the same input side by
side, every expert separate, and the softmax scale folded into the queries. Half precision halves
the bytes: weights in fp16, everything else (sums, attention, cache) in fp32.

Long prompts use the model itself, and so does everything on a GPU, where the number of kernels
matters more than the layout.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_model.cache import LatentCache
from moe_model.model import LanguageModel
from moe_model.mtp import PredictionDepth
from moe_model.prepared_layer import PreparedLayer, PreparedLinear, normed
from moe_model.rotary import rotary_table

FEW = 8
"""Up to this many new tokens, the prepared weights are faster than the model."""


class Decoder:
    """Decodes one sequence with a latent cache."""

    def __init__(
        self, model: LanguageModel, length: int, *, weights: torch.dtype | None = None
    ) -> None:
        """Prepare ``model`` for reading up to ``length`` tokens.

        Args:
            model: In evaluation mode; later changes to its weights have no effect.
            length: Tokens of prompt and answer together.
            weights: Format of the prepared weights: fp32, or fp16 for half the memory traffic. With
                ``None`` the model itself always runs, which is right on a GPU.
        """
        self.model = model
        self.weights = weights
        self.device = model.embed_tokens.weight.device
        dtype = model.embed_tokens.weight.dtype if weights is None else torch.float32
        self.cache = LatentCache(model.config, 1, length, dtype=dtype, device=self.device)
        self.table = rotary_table(model.config, 0, length, self.device)
        self._turn_N1r = torch.complex(*self.table).unsqueeze(1)
        self._layers: list[PreparedLayer] = []
        if weights is not None:
            layers = model.decoder_layers
            self._layers = [PreparedLayer(layer, weights) for layer in layers]
            self._head = PreparedLinear(model.head_weight, weights)

    @torch.inference_mode()
    def read(self, ids: list[int]) -> tuple[Tensor, Tensor]:
        """Append ``ids``; return logits ``(S, V)`` and normed hidden states ``(S, D)``."""
        room = len(self.cache) - self.cache.used
        if len(ids) > room:
            raise ValueError(
                f"{len(ids)} tokens do not fit: {room} of {len(self.cache)} are free. Forget some, "
                "or create a longer decoder."
            )
        ids_S = torch.tensor(ids, device=self.device)
        if not self._layers or len(ids) > FEW:
            output = self.model(ids_S[None], cache=self.cache)
            return output.logits_BSV[0].float(), output.hidden_BSD[0]
        start, end = self.cache.used, self.cache.used + len(ids)
        turn_S1r = self.turn(start, end)
        x_SD = self.model.embed_tokens.weight[ids_S].float()
        for depth, layer in enumerate(self._layers):
            x_SD = layer.read(x_SD, turn_S1r, self.cache.entries_LBNW[depth, 0], start)
        self.cache.used = end
        hidden_SD = normed(x_SD, self.model.norm.weight, self.model.norm.eps)
        return self.logits(hidden_SD), hidden_SD

    def logits(self, hidden_SD: Tensor) -> Tensor:
        """Logits of normed hidden states, fp32."""
        if self.weights is None:
            return self.model.head(hidden_SD).float()
        return self._head(hidden_SD.to(self.weights)).float()

    def turn(self, start: int, end: int) -> Tensor:
        """Rotation of the positions from ``start`` to ``end``, complex, ``(S, 1, rope / 2)``."""
        return self._turn_N1r[start:end]

    def forget(self, tokens: int) -> None:
        """Forget the last ``tokens``."""
        self.cache.used -= tokens


class Drafter:
    """Drafts one token ahead of a :class:`Decoder` with the first depth of multi-token prediction.

    It reads the hidden states of the model, each with the token that followed, and has its own
    cache.
    """

    def __init__(self, decoder: Decoder) -> None:
        """Draft for ``decoder``; ``ValueError`` if its model has no multi-token prediction."""
        model = decoder.model
        if not model.mtp:
            raise ValueError(
                "num_nextn_predict_layers=0: this model was trained without multi-token "
                "prediction and cannot draft. Train it with --mtp, or generate without drafts."
            )
        self._decoder = decoder
        depth = model.mtp[0]
        assert isinstance(depth, PredictionDepth)
        self._depth = depth
        like = decoder.cache.entries_LBNW
        self._cache = LatentCache(
            model.config, 1, len(decoder.cache), layers=1, dtype=like.dtype, device=like.device
        )
        if decoder.weights is not None:
            self._combine = PreparedLinear(depth.eh_proj.weight, decoder.weights)
            self._layer = PreparedLayer(depth.layer, decoder.weights)

    def forget_all(self) -> None:
        """Start a new text."""
        self._cache.used = 0

    @torch.inference_mode()
    def propose(self, hidden_SD: Tensor, following: list[int]) -> int:
        """Read S positions, each with the token that followed; draft the token after the last one.

        Args:
            hidden_SD: Normed hidden states of the positions not read before.
            following: The token after each of them.
        """
        start, end = self._cache.used, self._cache.used + len(following)
        embedding_SD = self._decoder.model.embed_tokens.weight[
            torch.tensor(following, device=hidden_SD.device)
        ]
        depth = self._depth
        if self._decoder.weights is None or len(following) > FEW:
            ahead_SD = depth(
                hidden_SD[None],
                embedding_SD[None],
                tuple(part[start:end] for part in self._decoder.table),
                remember=lambda entries_BSW: self._cache.append(0, entries_BSW),
            )[0][0]
        else:
            both = (
                normed(embedding_SD.float(), depth.enorm.weight, depth.enorm.eps),
                normed(hidden_SD, depth.hnorm.weight, depth.hnorm.eps),
            )
            x_SD = self._combine(torch.cat(both, dim=-1).to(self._decoder.weights)).float()
            turn_S1r, entries_NW = self._decoder.turn(start, end), self._cache.entries_LBNW[0, 0]
            x_SD = self._layer.read(x_SD, turn_S1r, entries_NW, start)
            ahead_SD = normed(x_SD, depth.norm.weight, depth.norm.eps)
        self._cache.used = end
        return int(self._decoder.logits(ahead_SD[-1:]).argmax())
