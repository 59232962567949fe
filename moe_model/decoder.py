"""Token-by-token decoding on a CPU, at memory bandwidth.

A forward pass over one token does two floating-point operations per weight, so its speed depends on
the memory layout of the weights and on the number of small operations. A :class:`Decoder` keeps its
own copy of the weights: transposed, those with the same input side by side, every expert separate,
norm weights and the softmax scale folded into the following matrix. Half precision: weights in
fp16, everything else in fp32. Long prompts and GPUs use the model itself.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_model.attention import LatentCache, rotary_table, softmax_scale
from moe_model.experts import FeedForward
from moe_model.model import DecoderLayer, LanguageModel, MixtureOfExperts, PredictionDepth
from moe_model.router import Router

FEW = 8
"""Up to this many new tokens, the prepared weights are faster than the model."""

_FEW_EXPERTS = 64
"""Up to this many scores, choosing experts in Python is faster than the router's operations."""


class Decoder:
    """Decodes one sequence with a latent cache."""

    @torch.no_grad()
    def __init__(
        self, model: LanguageModel, length: int, *, weights: torch.dtype | None = None
    ) -> None:
        """Prepare ``model`` for reading up to ``length`` tokens.

        Args:
            model: In evaluation mode; do not change it afterwards: some of its weights are copied.
            weights: Format of the prepared weights: fp32, or fp16 for half the memory traffic. With
                ``None`` the model itself always runs, which is right on a GPU.
        """
        self.model = model
        self.weights = weights
        self.device = model.embed_tokens.weight.device
        dtype = model.embed_tokens.weight.dtype if weights is None else torch.float32
        self.cache = LatentCache(model.config, 1, length, dtype=dtype, device=self.device)
        self.table = rotary_table(model.config, torch.arange(length, device=self.device))
        self.turn_N1r = torch.complex(*self.table).unsqueeze(1)
        self._layers: list[PreparedLayer] = []
        if weights is not None:
            self._layers = [PreparedLayer(layer, weights) for layer in model.decoder_layers]
            self._head = PreparedLinear(model.head_weight, weights)

    @torch.inference_mode()
    def read(self, ids: list[int]) -> tuple[Tensor, Tensor]:
        """Append ``ids``: logits ``(S, V)``, fp32, and normed hidden states ``(S, D)``.

        ``ValueError`` if they do not fit into the cache.
        """
        ids_S = torch.tensor(ids, device=self.device)
        if not self._layers or len(ids) > FEW:
            output = self.model(ids_S[None], cache=self.cache)
            return output.logits_BSV[0].float(), output.hidden_BSD[0]
        start, end = self.cache.used, self.cache.end_of(len(ids))
        turn_S1r = self.turn_N1r[start:end]
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


class Drafter:
    """Drafts one token ahead of a :class:`Decoder` with the first depth of multi-token prediction,
    which has its own cache."""

    @torch.no_grad()
    def __init__(self, decoder: Decoder) -> None:
        """``ValueError`` if its model has no multi-token prediction."""
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
        self.cache = LatentCache(
            model.config, 1, len(decoder.cache), layers=1, dtype=like.dtype, device=like.device
        )
        if decoder.weights is not None:
            self._combine = PreparedLinear(depth.eh_proj.weight, decoder.weights)
            self._layer = PreparedLayer(depth.layer, decoder.weights)

    @torch.inference_mode()
    def propose(self, hidden_SD: Tensor, following: list[int]) -> int:
        """Read S positions, each with the token that followed; draft the token after the last one.

        Args:
            hidden_SD: Normed hidden states of the positions not read before.
            following: The token after each of them.
        """
        start, end = self.cache.used, self.cache.used + len(following)
        embedding_SD = self._decoder.model.embed_tokens.weight[
            torch.tensor(following, device=hidden_SD.device)
        ]
        depth = self._depth
        if self._decoder.weights is None or len(following) > FEW:
            ahead_SD = depth(
                hidden_SD[None],
                embedding_SD[None],
                tuple(part[start:end] for part in self._decoder.table),
                remember=lambda entries_BSW: self.cache.append(0, entries_BSW),
            )[0][0]
        else:
            both = (
                normed(embedding_SD.float(), depth.enorm.weight, depth.enorm.eps),
                normed(hidden_SD, depth.hnorm.weight, depth.hnorm.eps),
            )
            x_SD = self._combine(torch.cat(both, dim=-1).to(self._decoder.weights)).float()
            turn_S1r = self._decoder.turn_N1r[start:end]
            entries_NW = self.cache.entries_LBNW[0, 0]
            x_SD = self._layer.read(x_SD, turn_S1r, entries_NW, start)
            ahead_SD = normed(x_SD, depth.norm.weight, depth.norm.eps)
        self.cache.used = end
        return int(self._decoder.logits(ahead_SD[-1:]).argmax())


class PreparedLinear:
    """``x @ weightᵀ`` for few rows, at the speed of memory; in and out in the weight's format.

    In fp32 the weight is transposed, so that its rows are added up in order, and cut into one part
    per thread: otherwise a product with one row runs on one core. In fp16 it is not transposed, and
    every row is a separate product, for which torch has a kernel that uses all cores.
    """

    def __init__(self, weight_OI: Tensor, dtype: torch.dtype) -> None:
        self.half = dtype == torch.float16
        if self.half:
            self.weight = weight_OI.to(dtype).contiguous()
            return
        outputs, inputs = weight_OI.shape
        parts = torch.get_num_threads()
        self.parts = parts if inputs % parts == 0 else 1
        weight_IO = weight_OI.to(dtype).t().contiguous()
        self.weight = weight_IO.view(self.parts, inputs // self.parts, outputs)

    def __call__(self, x_SI: Tensor) -> Tensor:
        if self.half:
            if len(x_SI) == 1:
                return F.linear(x_SI, self.weight)
            return torch.stack([torch.mv(self.weight, row) for row in x_SI])
        x_PSi = x_SI.view(len(x_SI), self.parts, -1).transpose(0, 1)
        return torch.bmm(x_PSi, self.weight).sum(dim=0)


class PreparedFeedForward:
    """A SwiGLU whose gate and up are one matrix."""

    def __init__(self, gate_up_FD: Tensor, down_DF: Tensor, dtype: torch.dtype) -> None:
        self.gate_up = PreparedLinear(gate_up_FD, dtype)
        self.down = PreparedLinear(down_DF, dtype)

    def __call__(self, x_SD: Tensor) -> Tensor:
        gate, up = self.gate_up(x_SD).chunk(2, dim=-1)
        return self.down(F.silu(gate).mul_(up))


class PreparedLayer:
    """The weights of one layer as :class:`Decoder` reads them."""

    def __init__(self, layer: DecoderLayer, dtype: torch.dtype) -> None:
        self.config = layer.self_attn.config
        self.dtype = dtype
        self.eps = layer.input_layernorm.eps
        self._prepare_attention(layer)
        norm_D = layer.post_attention_layernorm.weight.float()
        self.router: Router | None = None
        dense: FeedForward | None
        if isinstance(layer.mlp, MixtureOfExperts):
            router, experts, dense = layer.mlp.router, layer.mlp.experts, layer.mlp.shared_experts
            self.router = router
            self.router_norm = norm_D
            self.router_weight_DE = (router.weight.float() * norm_D).t().contiguous()
            self.router_bias = router.expert_bias.tolist()
            self.experts = [
                PreparedFeedForward(gate_up_FD.float() * norm_D, down_DF, dtype)
                for gate_up_FD, down_DF in zip(experts.gate_up_proj, experts.down_proj, strict=True)
            ]
        else:
            dense = layer.mlp
        self.dense = None
        if dense is not None:
            gate_up = torch.cat((dense.gate_proj.weight, dense.up_proj.weight)).float()
            self.dense = PreparedFeedForward(gate_up * norm_D, dense.down_proj.weight, dtype)

    def _prepare_attention(self, layer: DecoderLayer) -> None:
        attention = layer.self_attn
        config = self.config
        dtype = self.dtype
        heads, R, nope = config.num_attention_heads, config.kv_lora_rank, config.qk_nope_head_dim
        rope = config.qk_rope_head_dim
        norm_D = layer.input_layernorm.weight.float()
        key_value = attention.kv_a_proj_with_mqa.weight.float() * norm_D
        # [latent | rotary key], and of the queries [all without position | all rotary], so that
        # the rotary key follows the rotary queries.
        latent_and_key = (key_value[R:], key_value[:R])
        self.query_up = None
        if config.q_lora_rank is None:
            query = attention.q_proj.weight.float() * norm_D
            parts = [*_nope_then_rope(query, heads, nope, softmax_scale(config)), *latent_and_key]
        else:
            inner_norm = attention.q_a_layernorm.weight.float()
            query_up = attention.q_b_proj.weight.float() * inner_norm
            both = _nope_then_rope(query_up, heads, nope, softmax_scale(config))
            self.query_up = PreparedLinear(torch.cat(both), dtype)
            query = attention.q_a_proj.weight.float() * norm_D
            parts = [query, *latent_and_key]
        self.first = PreparedLinear(torch.cat(parts), dtype)
        self.first_bias: Tensor | None = None
        if (bias := attention.first_bias()) is not None:
            query_bias, latent, key = torch.split(bias.float(), [len(query), R, rope])
            self.first_bias = torch.cat((query_bias, key, latent))
            self.out_bias = attention.o_proj.bias.float()
        self.widths = [len(query), rope, R]
        self.latent_norm = attention.kv_a_layernorm.weight.float()
        up_HxR = attention.kv_b_proj.weight.float().view(heads, -1, R)
        self.up_key_HnR = up_HxR[:, :nope].contiguous()
        self.up_value_HRv = up_HxR[:, nope:].transpose(1, 2).contiguous()
        self.out = PreparedLinear(attention.o_proj.weight, dtype)

    def read(self, x_SD: Tensor, turn_S1r: Tensor, entries_NW: Tensor, start: int) -> Tensor:
        """The stream of S tokens after this layer; writes their entries into the cache.

        Args:
            x_SD: The stream, fp32.
            turn_S1r: Rotation of their positions, complex.
            entries_NW: The cache of this layer.
            start: Tokens in the cache before these.
        """
        x_SD = x_SD + self._attend(unit(x_SD, self.eps), turn_S1r, entries_NW, start)
        unit_SD = unit(x_SD, self.eps)
        y_SD = unit_SD.to(self.dtype)
        if self.dense is not None:
            x_SD += self.dense(y_SD)
        if self.router is not None:
            choices = self._choose(self.router, unit_SD)
            rows = zip(torch.split(x_SD, 1), torch.split(y_SD, 1), choices, strict=True)
            for x_1D, y_1D, choice in rows:
                for expert, share in zip(*choice, strict=True):
                    x_1D.add_(self.experts[expert](y_1D), alpha=share)
        return x_SD

    def _attend(self, unit_SD: Tensor, turn_S1r: Tensor, entries_NW: Tensor, start: int) -> Tensor:
        config = self.config
        tokens = len(unit_SD)
        heads, R, rope = config.num_attention_heads, config.kv_lora_rank, config.qk_rope_head_dim
        wide = heads * config.qk_nope_head_dim
        first = self.first(unit_SD.to(self.dtype)).float()
        if self.first_bias is not None:
            first += self.first_bias
        query, key_Sr, latent_SR = first.split_with_sizes(self.widths, dim=-1)
        if self.query_up is not None:
            query = self.query_up(unit(query, 1e-6).to(self.dtype)).float()
        rotary = torch.cat((query[:, wide:], key_Sr), dim=-1)
        pairs = torch.view_as_complex(rotary.view(tokens, heads + 1, rope // 2, 2))
        turned = torch.view_as_real(pairs * turn_S1r).view(tokens, heads + 1, rope)

        end = start + tokens
        entries_NW[start:end, :R] = normed(latent_SR, self.latent_norm, 1e-6)
        entries_NW[start:end, R:] = turned[:, heads]
        nope_HSn = query[:, :wide].view(tokens, heads, -1).transpose(0, 1)
        query_HSR = torch.bmm(nope_HSn, self.up_key_HnR)
        query_HSW = torch.cat((query_HSR, turned[:, :heads].transpose(0, 1)), dim=-1)
        context_HSR = _look_back(query_HSW, entries_NW, start, R)
        value_HSv = torch.bmm(context_HSR, self.up_value_HRv)
        out_SD = self.out(value_HSv.transpose(0, 1).reshape(tokens, -1).to(self.dtype))
        return out_SD if self.first_bias is None else out_SD + self.out_bias

    def _choose(self, router: Router, unit_SD: Tensor) -> list[tuple[list[int], list[float]]]:
        config = router.config
        simple = config.n_group == 1 and config.n_routed_experts <= _FEW_EXPERTS
        if not simple or config.scoring_func != "sigmoid":
            routing = router(unit_SD * self.router_norm)
            chosen, weights = routing.expert_ids_TK.tolist(), routing.weights_TK.tolist()
            return list(zip(chosen, weights, strict=True))
        choices = []
        for scores in (unit_SD @ self.router_weight_DE).sigmoid_().tolist():
            by_choice = [score + bias for score, bias in zip(scores, self.router_bias, strict=True)]
            order = sorted(range(len(scores)), key=by_choice.__getitem__, reverse=True)
            ids = order[: config.num_experts_per_tok]
            total = sum(scores[e] for e in ids) + 1e-20 if config.norm_topk_prob else 1.0
            choices.append((ids, [scores[e] / total * config.routed_scaling_factor for e in ids]))
        return choices


def _look_back(query_HSW: Tensor, entries_NW: Tensor, start: int, rank: int) -> Tensor:
    """Attention of the S tokens from ``start`` on to themselves and the past, ``(H, S, R)``.

    The past is split into one part per thread, which is in the cache of that core for the second
    product. Parts have the same length: what the last has beyond the end is masked like the future.
    """
    heads, tokens, width = query_HSW.shape
    parts = torch.get_num_threads()
    end = start + tokens
    each = -(-end // parts)
    if parts * each > len(entries_NW):
        parts = 1
        each = end
    past = entries_NW[: parts * each].view(parts, each, width)
    queries = query_HSW.reshape(1, heads * tokens, width).expand(parts, -1, -1)
    scores = torch.bmm(queries, past.transpose(1, 2)).transpose(0, 1).reshape(heads, tokens, -1)
    if tokens > 1 or parts * each > end:
        hidden_SN = torch.ones(tokens, parts * each, dtype=torch.bool).triu(start + 1)
        scores.masked_fill_(hidden_SN, float("-inf"))
    share = scores.softmax(dim=-1).view(heads * tokens, parts, each).transpose(0, 1)
    return torch.bmm(share, past[..., :rank]).sum(dim=0).view(heads, tokens, rank)


def unit(x_SD: Tensor, eps: float) -> Tensor:
    """RMSNorm without its weight, ``(S, D)``; one row takes a third of the time of torch's."""
    if len(x_SD) > 1:
        return F.rms_norm(x_SD, x_SD.shape[1:], None, eps)
    row = x_SD.view(-1)
    scale: float = (torch.dot(row, row).item() / len(row) + eps) ** -0.5
    return x_SD * scale


def normed(x_SD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """RMSNorm in fp32, whatever the format of ``x_SD``."""
    return unit(x_SD.float(), eps).mul_(weight_D)


def _nope_then_rope(
    weight_OI: Tensor, heads: int, nope: int, scale: float
) -> tuple[Tensor, Tensor]:
    """The rows of all heads without position, and the rotary rows of all heads, both scaled."""
    weight_HdI = weight_OI.view(heads, -1, weight_OI.shape[1]) * scale
    return weight_HdI[:, :nope].flatten(0, 1), weight_HdI[:, nope:].flatten(0, 1)
