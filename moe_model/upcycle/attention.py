"""Convert grouped-query attention to multi-head latent attention, without training.

The main idea: **weight every error by its effect on the output for a real text**
(:class:`moe_model.upcycle.llama.LayerReadings`); the cost of a wrong score or value follows from
the weights. The rest is truncated decompositions. There are three obstacles:

1. **One rotary key for all heads.** A rotary pair is one complex number, and pairs can be mixed
   across heads by complex factors (TransMLA mixes with real ones). So of each of the fastest pairs
   the best few mixes of the heads' keys become the shared key, and the queries absorb the factors.
   The first mix of a pair rotates exactly as before, the others slower by less than one pair.
2. **Keys without position.** The rest, mostly the slow pairs, is compared without rotation. A
   missing rotation multiplies a pair by exp(-iωΔ) at distance Δ; the best constant to correct it is
   the mean over the distances at which a head looks: nearly 1 for slow pairs and short distances,
   nearly 0 where no constant is right. The same holds for mixes that rotate slower.
3. **One latent.** Keys without position and values of all heads are expanded from R numbers: the
   R-dimensional view of the input that predicts them best, counted by what their errors do to the
   output. The latent passes an RMSNorm, so that view is given **orthonormal** rows: for an input
   of mean square 1 it then has nearly the same length for every token, and exactly at R = D.

One case is exact: one key-value head (or several that are mixes of one), all pairs rotary, R = D.
In all others the loss jumps.

Biases (Qwen2) are exact wherever the weights are. That of values reaches the output whole, since
attention adds up to one, so it belongs to the bias of ``o_proj``. Those of rotary keys have a place
in ``kv_a_proj_with_mqa``; those of keys without position raise all scores of a query by the same
amount, which does not change a softmax. Only queries have no bias in this architecture, but their
latent has: of rank D + 1 it holds the normed stream and a one, its norm finds a mean square of one
and changes nothing, and the one carries the bias.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_model.attention import MultiHeadLatentAttention, slowed_as_in_llama3
from moe_model.config import Llama3Scaling, YarnScaling
from moe_model.upcycle.llama import LayerReadings

_SHRINKAGE = 0.01
"""Shrinkage of the covariances towards equal directions: a text never covers all of them."""


class Kept(NamedTuple):
    """The fraction that each approximation keeps, from 0 to 1."""

    rotary: float
    """Of the fast pairs of all keys, by the shared rotary key."""
    latent: float
    """Of keys without position and values, by a latent of this rank."""


def rotary_base(theta: float, head_dim: int, qk_rope_head_dim: int, mixes: int) -> float:
    """``rope_theta`` with which pair ``mixes · j`` of the new key rotates like pair j of the old.

    Llama 3's scaling may follow: its effect on a pair depends on the frequency only.
    """
    return float(theta ** (qk_rope_head_dim / (head_dim * mixes)))


@torch.no_grad()
def convert_attention(
    ours: MultiHeadLatentAttention, layer: Any, readings: LayerReadings, mixes: int
) -> Kept:
    """Fill ``ours`` from a Llama's decoder layer, the gain of its input norm folded in.

    All in fp64: covariances square the range of the weights.

    Args:
        ours: To be used behind a norm whose gain is one.
        layer: transformers' ``LlamaDecoderLayer``.
        readings: Of that layer.
        mixes: Of the heads' keys, for each rotary pair.
    """
    config, heads = ours.config, _heads(layer)
    d, theta = layer.self_attn.head_dim, layer.self_attn.config.rope_parameters["rope_theta"]
    frequency_j = _frequencies(theta, config.rope_scaling, d)
    inputs_ND = readings.inputs_ND.double()
    # Half of a token's weight is constant, half is the attention it receives: large models send
    # most of that to the first token.
    weight_N = (1 + readings.attention_N) / 2
    # Queries and keys have one more column, their bias, so the input gets a constant one.
    with_one_NE = F.pad(inputs_ND, (0, 1), value=1.0)
    seen_EE = covariance(with_one_NE, torch.ones_like(weight_N))
    attended_EE, attended_DD = (covariance(x, weight_N) for x in (with_one_NE, inputs_ND))

    # The new pair i rotates like the old pair i // mixes, or a little slower.
    pair_i = torch.arange(config.qk_rope_head_dim // 2) // mixes
    ours_i = _frequencies(config.rope_theta, config.rope_scaling, config.qk_rope_head_dim)
    slower_i = frequency_j[pair_i] - ours_i
    slip_Hi = _mean_turn(slower_i, readings.distance_HS)
    shared = _share_rotary_key(heads, pair_i, slip_Hi, attended_EE)
    still_Hj = _mean_turn(frequency_j, readings.distance_HS)
    rest_HjE = still_Hj.unsqueeze(-1) * shared.rest_HjE
    rest_HdD = torch.cat((rest_HjE.real, rest_HjE.imag), dim=-2)[..., :-1]

    queries, expanded, outs, errors = [], [], [], []
    for q_dE, rest_dD, v_dD, out_dD, q_rE in zip(
        heads.q_HdE, rest_HdD, heads.v_HdE[..., :-1], heads.out_HdD, shared.q_HrE, strict=True
    ):
        q_dd, v_dd = moments(q_dE, seen_EE), moments(v_dD, attended_DD)
        rest_dd, out_dd = moments(rest_dD, attended_DD), out_dD @ out_dD.T
        q_nE, k_nD = shortened(q_dE, q_dd, rest_dD, rest_dd, config.qk_nope_head_dim)
        out_vD, v_vD = shortened(out_dD, out_dd, v_dD, v_dd, config.v_head_dim)
        queries += [q_nE, q_rE]
        expanded += [k_nD, v_vD]
        outs += [out_vD]
        # A score that is wrong by δ moves the output by δ times the spread of what is attended to.
        spread = (root(v_dd).T @ out_dD).norm() / math.sqrt(d)
        errors += [spread * root(moments(q_nE, seen_EE)).T @ k_nD]
        errors += [root(out_vD @ out_vD.T).T @ v_vD]

    view_RD, kept = latent_view(torch.cat(errors), attended_DD, config.kv_lora_rank)
    eps = ours.kv_a_layernorm.eps
    expand_MR = expansion(torch.cat(expanded), view_RD, attended_DD, inputs_ND, weight_N, eps)
    scale = math.sqrt(config.qk_head_dim / d)  # ours divides scores by the root of another width
    down_XE = torch.cat((F.pad(view_RD, (0, 1)), shared.key_rE))
    _fill(ours, torch.cat(queries) * scale, down_XE, heads.bias_D)
    ours.kv_b_proj.weight.copy_(expand_MR)
    ours.o_proj.weight.copy_(torch.cat(outs).T)
    return Kept(shared.kept, kept)


def _fill(
    ours: MultiHeadLatentAttention, query_XE: Tensor, down_XE: Tensor, out_bias_D: Tensor
) -> None:
    """Set the projections of the stream, and biases.

    With biases, the latent of the queries is the stream and a one, which carries their bias.
    """
    ours.kv_a_proj_with_mqa.weight.copy_(down_XE[:, :-1])
    ours.kv_a_layernorm.weight.fill_(1.0)
    if not ours.config.attention_bias:
        ours.q_proj.weight.copy_(query_XE[:, :-1])
        return
    ours.kv_a_proj_with_mqa.bias.copy_(down_XE[:, -1])
    ours.o_proj.bias.copy_(out_bias_D)
    ours.q_a_proj.weight.zero_().fill_diagonal_(1.0)
    ours.q_a_proj.bias.zero_()[-1] = 1.0
    ours.q_a_layernorm.weight.fill_(1.0)
    ours.q_b_proj.weight.copy_(query_XE)


class _Heads(NamedTuple):
    """Weights of a Llama's attention by head, rows of each head from the normed stream or to it;
    E = D + 1, the bias last."""

    q_HdE: Tensor
    k_HdE: Tensor
    v_HdE: Tensor
    out_HdD: Tensor
    bias_D: Tensor
    """Of the output, that of the values included."""


def _heads(layer: Any) -> _Heads:
    """Shared keys and values are repeated; the norm's gain is folded in."""
    theirs = layer.self_attn
    gain_D = layer.input_layernorm.weight.double()

    def rows(projection: torch.nn.Linear) -> Tensor:
        weight_XD = projection.weight.double() * gain_D
        bias_X = weight_XD.new_zeros(len(weight_XD)) if projection.bias is None else projection.bias
        weight_XE = torch.cat((weight_XD, bias_X.double().unsqueeze(-1)), dim=1)
        return weight_XE.view(-1, theirs.head_dim, weight_XE.shape[1])

    k_HdE, v_HdE = (
        rows(projection).repeat_interleave(theirs.num_key_value_groups, dim=0)
        for projection in (theirs.k_proj, theirs.v_proj)
    )
    out_DX = theirs.o_proj.weight.double()
    bias_D = out_DX @ v_HdE[..., -1].flatten()
    if theirs.o_proj.bias is not None:
        bias_D += theirs.o_proj.bias.double()
    out_HdD = out_DX.T.unflatten(0, (-1, theirs.head_dim))
    return _Heads(rows(theirs.q_proj), k_HdE, v_HdE, out_HdD, bias_D)


class _SharedKey(NamedTuple):
    key_rE: Tensor
    """The rotary key of all heads, pairs interleaved."""
    q_HrE: Tensor
    """The queries for it."""
    rest_HjE: Tensor
    """The rest of every pair of the keys, complex."""
    kept: float


def _share_rotary_key(
    heads: _Heads, pair_i: Tensor, slip_Hi: Tensor, seen_EE: Tensor
) -> _SharedKey:
    """The first complex principal components over the heads' keys, pair by pair.

    Args:
        heads: Of the source.
        pair_i: The old pair that each new one is a mix of, ascending.
        slip_Hi: For every head, the factor that corrects the slower rotation.
        seen_EE: Covariance of the inputs of the keys, the constant one included.
    """
    q_HjE, k_HjE = _pairs(heads.q_HdE), _pairs(heads.k_HdE)
    k_jHE = k_HjE[:, : pair_i[-1] + 1].transpose(0, 1)
    variance_jH, component_jHH = torch.linalg.eigh(moments(k_jHE, seen_EE))
    last_i = -1 - (torch.arange(len(pair_i)) - torch.searchsorted(pair_i, pair_i))
    # Factors of size 1, so that the key is about as large as the keys that it mixes.
    num_heads = len(q_HjE)
    mix_iH = component_jHH[pair_i, :, last_i] * math.sqrt(num_heads)
    key_iE = torch.einsum("ih,ihx->ix", mix_iH.conj(), k_jHE[pair_i]) / num_heads
    taken_HiE = torch.einsum("ih,ix->hix", mix_iH, key_iE)
    q_HiE = torch.einsum("ih,hi,hix->hix", mix_iH.conj(), slip_Hi.conj(), q_HjE[:, pair_i])
    return _SharedKey(
        key_rE=_interleaved(key_iE),
        q_HrE=_interleaved(q_HiE),
        rest_HjE=k_HjE.index_add(1, pair_i, taken_HiE, alpha=-1),
        kept=float(variance_jH[pair_i, last_i].sum() / variance_jH.sum().clamp(min=1e-30)),
    )


def _frequencies(theta: float, scaling: YarnScaling | Llama3Scaling | None, dims: int) -> Tensor:
    """Radians a token, of every pair of ``dims`` rotary dimensions."""
    assert not isinstance(scaling, YarnScaling), "rejected when the source was read"
    frequency_j: Tensor = theta ** (-torch.arange(0, dims, 2).double() / dims)
    return frequency_j if scaling is None else slowed_as_in_llama3(frequency_j, scaling)


def _mean_turn(frequency_j: Tensor, distance_HS: Tensor) -> Tensor:
    """The mean rotation over the distances of each head: complex, of size 1 at most."""
    back_S = torch.arange(distance_HS.shape[1]).double()
    turn_jS = torch.polar(torch.ones(1).double(), -torch.outer(frequency_j, back_S))
    return distance_HS.to(turn_jS.dtype) @ turn_jS.T


def _pairs(rows_HdD: Tensor) -> Tensor:
    """Llama's rotary pairs, dimension i and i + d/2, as complex numbers ``(H, d/2, D)``."""
    return torch.complex(*rows_HdD.chunk(2, dim=-2))


def _interleaved(pairs_XjD: Tensor) -> Tensor:
    """Real rows ``(…, 2j, D)`` in DeepSeek's layout, dimension 2i and 2i + 1 a pair."""
    return torch.view_as_real(pairs_XjD).movedim(-1, -2).flatten(-3, -2)


def shortened(
    left_dD: Tensor, left_dd: Tensor, right_dD: Tensor, right_dd: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """Both sides in ``size`` rows so that ``leftᵀ right`` changes least: balanced truncation.

    With second moments ``A Aᵀ`` and ``B Bᵀ`` of the two sides, only the singular values of ``Aᵀ B``
    matter. Rows that are not needed are zero.
    """
    a_dd, b_dd = root(left_dd), root(right_dd)
    u_dd, s_d, vh_dd = torch.linalg.svd(a_dd.T @ b_dd)
    needed = min(size, int((s_d > 1e-9 * s_d[0]).sum()))
    scale_n1 = s_d[:needed].rsqrt().unsqueeze(-1)
    left_nD = scale_n1 * (vh_dd[:needed] @ b_dd.T @ left_dD)
    right_nD = scale_n1 * (u_dd.T[:needed] @ a_dd.T @ right_dD)
    zeros = (0, 0, 0, size - needed)
    return F.pad(left_nD, zeros), F.pad(right_nD, zeros)


def latent_view(errors_MD: Tensor, covariance_DD: Tensor, rank: int) -> tuple[Tensor, float]:
    """The ``rank`` numbers of an input that predict ``errors_MD @ input`` best.

    Returns:
        Orthonormal rows ``(R, D)``, and the share of the variance that they predict. The rows of a
        smaller rank span a part of those of a larger one, so the share never falls with the rank.
    """
    root_DD = torch.linalg.cholesky(covariance_DD)
    variance_D, components_DD = torch.linalg.eigh((errors_MD @ root_DD).T @ (errors_MD @ root_DD))
    best_DR = components_DD.flip(-1)[:, :rank]
    view_DR = torch.linalg.qr(torch.linalg.solve_triangular(root_DD.T, best_DR, upper=True)).Q
    variance_D = variance_D.flip(-1).clamp(min=0)
    return view_DR.T, float(variance_D[:rank].sum() / variance_D.sum().clamp(min=1e-30))


def expansion(
    wanted_MD: Tensor,
    view_RD: Tensor,
    covariance_DD: Tensor,
    inputs_ND: Tensor,
    weight_N: Tensor,
    eps: float,
) -> Tensor:
    """The map from a normed latent to ``wanted @ input``, ``(M, R)``.

    First for latents of length 1, which is exact at R = D; then a regression on the normed latents
    corrects for their lengths, which differ for first tokens in large models.
    """
    covariance_DR = covariance_DD @ view_RD.T
    expand_RM: Tensor = torch.linalg.solve(view_RD @ covariance_DR, covariance_DR.T @ wanted_MD.T)
    latent_NR = F.rms_norm(inputs_ND @ view_RD.T, (len(view_RD),), eps=eps)
    missed_NM = inputs_ND @ wanted_MD.T - latent_NR @ expand_RM
    weighted_RN = latent_NR.T * weight_N / len(weight_N)
    seen_RR = weighted_RN @ latent_NR + _SHRINKAGE * torch.eye(len(view_RD)).double()
    expand_RM += torch.linalg.solve(seen_RR, weighted_RN @ missed_NM)
    return expand_RM.T


def covariance(inputs_ND: Tensor, weight_N: Tensor) -> Tensor:
    """Second moments ``(D, D)`` of weighted inputs, with a little shrinkage: positive definite."""
    weighted_ND = inputs_ND * weight_N.unsqueeze(-1) / len(inputs_ND)
    covariance_DD: Tensor = inputs_ND.T @ weighted_ND
    equal_DD = torch.eye(len(covariance_DD)).double()
    return (1 - _SHRINKAGE) * covariance_DD + _SHRINKAGE * equal_DD


def moments(rows_XD: Tensor, covariance_DD: Tensor) -> Tensor:
    """Second moments ``(X, X)`` of ``rows @ input`` for inputs of that covariance."""
    return rows_XD @ covariance_DD.to(rows_XD.dtype) @ rows_XD.mH


def root(moments_XX: Tensor) -> Tensor:
    """``A`` with ``A Aᵀ`` equal to ``moments_XX``."""
    variance_X, components_XX = torch.linalg.eigh(moments_XX)
    root_XX: Tensor = components_XX * variance_X.clamp(min=0).sqrt()
    return root_XX
