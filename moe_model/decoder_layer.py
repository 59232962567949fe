"""One decoder layer prepared for reading few tokens: the same function as ``DecoderLayer``.

Absorbed attention over the latents of one sequence, then the dense feed-forward or the few experts
that were chosen. It is written out, because between two products of a millisecond every operation
that is not needed shows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_model.experts import FeedForward
from moe_model.layer import DecoderLayer, MixtureOfExperts
from moe_model.rotary import softmax_scale


class Linear:
    """``x @ weightᵀ`` for few rows, at the speed of memory.

    In fp32 the weight is transposed, so that its rows are added up in order, and cut into one part
    per thread: a product with one row runs on one core otherwise. In fp16 it stays as it is, and
    every row is a product of its own, for which torch has a kernel that runs on all cores.
    """

    def __init__(self, weight_OI: Tensor, dtype: torch.dtype) -> None:
        self.features = weight_OI.shape[0]
        self.half = dtype == torch.float16
        if self.half:
            self.weight = weight_OI.detach().to(dtype).contiguous()
            return
        inputs, parts = weight_OI.shape[1], torch.get_num_threads()
        self.parts = parts if inputs % parts == 0 else 1
        weight_IO = weight_OI.detach().to(dtype).t().contiguous()
        self.weight = weight_IO.view(self.parts, inputs // self.parts, self.features)

    def __call__(self, x_SI: Tensor) -> Tensor:
        if self.half:
            rows = x_SI.half()
            if len(rows) > 1:
                return torch.stack([torch.mv(self.weight, row) for row in rows]).float()
            return F.linear(rows, self.weight).float()
        x_PSi = x_SI.view(len(x_SI), self.parts, -1).transpose(0, 1)
        return torch.bmm(x_PSi, self.weight).sum(dim=0)


class PreparedFeedForward:
    """A SwiGLU whose gate and up are one matrix."""

    def __init__(self, gate_up_FD: Tensor, down_DF: Tensor, dtype: torch.dtype) -> None:
        self.gate_up = Linear(gate_up_FD, dtype)
        self.down = Linear(down_DF, dtype)

    def __call__(self, x_SD: Tensor) -> Tensor:
        gate, up = self.gate_up(x_SD).chunk(2, dim=-1)
        return self.down(F.silu(gate).mul_(up))


class PreparedLayer:
    """The weights of one layer as :class:`~moe_model.decoder.Decoder` reads them."""

    def __init__(self, layer: DecoderLayer, dtype: torch.dtype) -> None:
        attention, config = layer.self_attn, layer.self_attn.config
        self.config = config
        heads, R = config.num_attention_heads, config.kv_lora_rank
        self.norms = (layer.input_layernorm, layer.post_attention_layernorm)
        self.latent_norm = attention.kv_a_layernorm
        scale = softmax_scale(config)
        key_value = attention.kv_a_proj_with_mqa.weight.float()
        if config.q_lora_rank is None:
            self.query_norm = self.query_up = None
            first = torch.cat((attention.q_proj.weight.float() * scale, key_value))
        else:
            self.query_norm = attention.q_a_layernorm
            self.query_up = Linear(attention.q_b_proj.weight.float() * scale, dtype)
            first = torch.cat((attention.q_a_proj.weight.float(), key_value))
        self.first = Linear(first, dtype)
        up_HxR = attention.kv_b_proj.weight.detach().float().view(heads, -1, R)
        self.up_key_HnR = up_HxR[:, : config.qk_nope_head_dim].contiguous()
        self.up_value_HRv = up_HxR[:, config.qk_nope_head_dim :].transpose(1, 2).contiguous()
        self.out = Linear(attention.o_proj.weight, dtype)
        self.router = None
        if isinstance(layer.mlp, MixtureOfExperts):
            experts = layer.mlp.experts
            self.router = layer.mlp.router
            self.experts = [
                PreparedFeedForward(gate_up_FD, down_DF, dtype)
                for gate_up_FD, down_DF in zip(
                    experts.gate_up_proj.unbind(), experts.down_proj.unbind(), strict=True
                )
            ]
            self.shared = _prepared(layer.mlp.shared_experts, dtype)
        else:
            self.shared = _prepared(layer.mlp, dtype)

    def read(self, x_SD: Tensor, turn_Sr: Tensor, entries_NW: Tensor, start: int) -> Tensor:
        """The stream of S tokens after this layer; writes their entries into the cache.

        Args:
            x_SD: The stream, fp32.
            turn_Sr: Rotation of their positions, complex.
            entries_NW: The cache of this layer.
            start: Tokens in the cache before these.
        """
        before, between = self.norms
        x_SD = x_SD + self._attend(
            normed(x_SD, before.weight, before.eps), turn_Sr, entries_NW, start
        )
        y_SD = normed(x_SD, between.weight, between.eps)
        if self.shared is not None:
            x_SD += self.shared(y_SD)
        if self.router is not None:
            routing = self.router(y_SD)
            chosen, weights = routing.expert_ids_TK.tolist(), routing.weights_TK.tolist()
            for token, (ids, shares) in enumerate(zip(chosen, weights, strict=True)):
                y_1D = y_SD[token : token + 1]
                for expert, share in zip(ids, shares, strict=True):
                    x_SD[token].add_(self.experts[expert](y_1D)[0], alpha=share)
        return x_SD

    def _attend(self, x_SD: Tensor, turn_Sr: Tensor, entries_NW: Tensor, start: int) -> Tensor:
        config, tokens = self.config, len(x_SD)
        heads, R, rope = config.num_attention_heads, config.kv_lora_rank, config.qk_rope_head_dim
        query, latent_SR, key_Sr = torch.split(
            self.first(x_SD), [self.first.features - R - rope, R, rope], dim=-1
        )
        if self.query_up is not None and self.query_norm is not None:
            query = self.query_up(normed(query, self.query_norm.weight, self.query_norm.eps))
        end = start + tokens
        norm = self.latent_norm
        entries_NW[start:end, :R] = normed(latent_SR, norm.weight, norm.eps)
        entries_NW[start:end, R:] = _turned(key_Sr, turn_Sr)
        past_NW = entries_NW[:end]

        query_HSd = query.view(tokens, heads, -1).transpose(0, 1)
        nope, rotary = torch.split(query_HSd, [config.qk_nope_head_dim, rope], dim=-1)
        query_HSW = torch.cat((nope @ self.up_key_HnR, _turned(rotary, turn_Sr)), dim=-1)
        scores_HSN = (query_HSW.flatten(0, 1) @ past_NW.t()).view(heads, tokens, end)
        if tokens > 1:
            future_SN = torch.ones(tokens, end, dtype=torch.bool).triu(start + 1)
            scores_HSN.masked_fill_(future_SN, float("-inf"))
        share_PN = scores_HSN.softmax(dim=-1).flatten(0, 1)
        context_HSR = (share_PN @ past_NW[:, :R]).view(heads, tokens, R)
        value_HSv = context_HSR @ self.up_value_HRv
        return self.out(value_HSv.transpose(0, 1).flatten(1))


def normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm in fp32."""
    return F.rms_norm(x, weight.shape, weight.float(), eps)


def _turned(x: Tensor, turn_Sr: Tensor) -> Tensor:
    """Rotate the interleaved pairs of ``(…, S, rope)``, each a complex number."""
    pairs = torch.view_as_complex(x.contiguous().view(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turn_Sr).flatten(-2)


def _prepared(feed_forward: FeedForward | None, dtype: torch.dtype) -> PreparedFeedForward | None:
    if feed_forward is None:
        return None
    gate_up = torch.cat((feed_forward.gate_proj.weight, feed_forward.up_proj.weight))
    return PreparedFeedForward(gate_up, feed_forward.down_proj.weight, dtype)
