"""Low-rank approximations that change the outputs least: SVDs and regressions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_SHRINKAGE = 0.01
"""Shrinkage of the covariances towards equal directions: a text never covers all of them."""


def shortened(
    left_dD: Tensor, left_dd: Tensor, right_dD: Tensor, right_dd: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """Reduce both sides to ``size`` rows so that ``leftᵀ right`` changes least.

    Balanced truncation: with second moments ``A Aᵀ`` and ``B Bᵀ`` of the two sides, only the
    singular values of ``Aᵀ B`` matter. Rows that are not needed are zero.
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
    """Second moments ``(D, D)`` of weighted inputs, with a little shrinkage."""
    weighted_ND = inputs_ND * weight_N.unsqueeze(-1) / len(inputs_ND)
    covariance_DD: Tensor = inputs_ND.T @ weighted_ND
    equal_DD = torch.eye(len(covariance_DD), dtype=torch.float64)
    return (1 - _SHRINKAGE) * covariance_DD + _SHRINKAGE * equal_DD


def moments(rows_XD: Tensor, covariance_DD: Tensor) -> Tensor:
    """Second moments ``(X, X)`` of ``rows @ input`` for inputs of that covariance."""
    return rows_XD @ covariance_DD.to(rows_XD.dtype) @ rows_XD.mH


def root(moments_XX: Tensor) -> Tensor:
    """``A`` with ``A Aᵀ`` equal to the symmetric ``moments_XX``."""
    variance_X, components_XX = torch.linalg.eigh(moments_XX)
    root_XX: Tensor = components_XX * variance_X.clamp(min=0).sqrt()
    return root_XX
