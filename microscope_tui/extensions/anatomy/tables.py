"""The tables of a probe over all its tokens: counts, noise, token identity, telling tokens.

Memory is bounded by the tokens of one layer and by ``MOST_CELLS``. Shuffling uses a fixed seed.

Shapes: T tokens, K choices of a token (a value that is not an expert is an empty slot), E experts,
S slices, V different tokens, P shuffled pieces of text.
"""

from collections.abc import Iterator

import numpy as np

from microscope_tui.probe.held_out import SEED, Array, ratios_of_pieces

PIECE = 64
"""Tokens that stay together when slices are shuffled: neighbours in a text are alike, and tokens
shuffled one by one would look less noisy than the text is."""
FEWEST_PAIRS = 5
"""An expert must have read a token this often for the token to be telling."""
MOST_TELLING = 10
MOST_CELLS = 1 << 22


def count_slices(ids_TK: Array, slices_T: Array, num_slices: int, num_experts: int) -> Array:
    """Chosen pairs of every slice and expert, int64 ``[S, E]``."""
    E = num_experts
    keys_TK = slices_T[:, None].astype(np.int64) * (E + 1) + np.minimum(ids_TK, E)
    counts = np.bincount(keys_TK.reshape(-1), minlength=num_slices * (E + 1))
    return counts.reshape(num_slices, E + 1)[:, :E]


def pieces_of(slices_T: Array, size: int = PIECE) -> Array:
    """Number of the piece of every token: ``size`` neighbours of one slice, int64 ``[T]``."""
    starts_T = np.ones(len(slices_T), dtype=bool)
    starts_T[1:] = slices_T[1:] != slices_T[:-1]
    places_T = np.arange(len(slices_T))
    within_T = places_T - np.maximum.accumulate(np.where(starts_T, places_T, 0))
    return np.cumsum(within_T % size == 0) - 1


def shuffled_ratios(
    ids_TK: Array, slices_T: Array, num_slices: int, num_experts: int
) -> list[Array]:
    """|log2(share in slice / share overall)| of one layer after shuffling its pieces of text.

    Returns, per slice, the ratios of all shuffles and of all experts that have
    ``FEWEST_EXPECTED`` pairs in the slice on average; an expert without a hit there counts as
    half a pair.
    """
    pieces_T = pieces_of(slices_T)
    P = int(pieces_T[-1]) + 1 if len(pieces_T) else 0
    slices_P = np.zeros(P, dtype=np.int64)
    slices_P[pieces_T] = slices_T
    return ratios_of_pieces(count_slices(ids_TK, pieces_T, P, num_experts), slices_P, num_slices)


class Vocabulary:
    """The different tokens of a text, each with its occurrences.

    ``order_T`` sorts the tokens of the text by id, those of one id in the order of the text.
    """

    def __init__(self, token_ids_T: Array) -> None:
        self.ids_V, inverse_T, self.counts_V = np.unique(
            token_ids_T, return_inverse=True, return_counts=True
        )
        self.order_T = np.argsort(inverse_T.reshape(-1), kind="stable")
        self.tokens = len(token_ids_T)

    def chunks(self, ids_TK: Array, num_experts: int) -> Iterator[tuple[int, Array]]:
        """The number of the first token of each chunk of the vocabulary, and the counts of the
        chunk.

        Counts are int64 ``[V', E]``: how many of each token's occurrences chose each expert.
        ``ids_TK``: in the order of ``order_T``, no expert twice in a row, see ``distinct``.
        """
        E = num_experts
        rows = max(1, MOST_CELLS // (E + 1))
        ends_V = np.cumsum(self.counts_V)
        for first in range(0, len(self.ids_V), rows):
            counts_V = self.counts_V[first : first + rows]
            start = ends_V[first] - counts_V[0]
            part_TK = ids_TK[start : start + counts_V.sum()]
            numbers_T = np.repeat(np.arange(len(counts_V)), counts_V)
            yield first, count_slices(part_TK, numbers_T, len(counts_V), E)


def distinct(ids_TK: Array, num_experts: int) -> Array:
    """Sorted ids, int64, with each expert once per token at most; other slots are
    ``num_experts``.
    """
    sorted_TK = np.sort(np.minimum(ids_TK.astype(np.int64), num_experts), axis=1)
    sorted_TK[:, 1:][sorted_TK[:, 1:] == sorted_TK[:, :-1]] = num_experts
    return sorted_TK


def identity_share(
    vocabulary: Vocabulary, ids_TK: Array, num_experts: int, shuffled: bool = False
) -> float | None:
    """Share of the routing that the identity of the token explains, 0 … 1.

    The explained share of the variance of the E indicators "expert e is among the chosen",
    summed over experts: Goodman and Kruskal's tau where k is 1 (1954), the R² of the analysis of
    variance for categorical data of Light and Margolin (1971) in general. It is 1 where a token
    always chooses the same experts, and 0 where the choice does not depend on it, for any k; an
    entropy of pairs would not be 1 for k > 1.

    Args:
        vocabulary: The token ids of the text.
        ids_TK: Chosen experts of every token; ``num_experts`` or more for none.
        num_experts: E.
        shuffled: Assign the choices to the tokens at random: chance alone explains
            (V − 1) / (T − 1).

    Returns:
        ``None`` where every token chose the same experts: nothing varies.
    """
    random = np.random.default_rng(SEED)
    order_T = random.permutation(vocabulary.tokens) if shuffled else vocabulary.order_T
    found_TK = distinct(ids_TK, num_experts)[order_T]
    within, total_E = 0.0, np.zeros(num_experts, dtype=np.int64)
    for first, counts_VE in vocabulary.chunks(found_TK, num_experts):
        n_V = vocabulary.counts_V[first : first + len(counts_VE)]
        within += float((counts_VE * (n_V[:, None] - counts_VE) / n_V[:, None]).sum())
        total_E += counts_VE.sum(axis=0)
    tokens = max(1, vocabulary.tokens)
    whole = float((total_E * (tokens - total_E) / tokens).sum())
    return None if whole <= 0 else min(1.0, max(0.0, 1 - within / whole))


def telling_tokens(
    vocabulary: Vocabulary, ids_TK: Array, num_experts: int, most: int = MOST_TELLING
) -> list[list[tuple[int, int, float]]]:
    """The most characteristic tokens of each expert: token id, count, lift; largest lift first.

    The lift is P(expert | token) / P(expert) over tokens. Tokens that the expert read fewer than
    ``FEWEST_PAIRS`` times, or no more often than others (lift 1 or less), are left out. Among equal
    lifts the more frequent token is first, then the smaller id.
    """
    found_TK = distinct(ids_TK, num_experts)[vocabulary.order_T]
    total_E = np.bincount(found_TK.reshape(-1), minlength=num_experts + 1)[:num_experts]
    best: list[list[tuple[int, int, float]]] = [[] for _ in range(num_experts)]
    for first, counts_VE in vocabulary.chunks(found_TK, num_experts):
        n_V = vocabulary.counts_V[first : first + len(counts_VE)]
        for expert in np.flatnonzero(total_E):
            more_V = counts_VE[:, expert] * vocabulary.tokens > n_V * total_E[expert]
            often_N = np.flatnonzero(more_V & (counts_VE[:, expert] >= FEWEST_PAIRS))
            counts_N = counts_VE[often_N, expert]
            lifts_N = counts_N * vocabulary.tokens / (n_V[often_N] * total_E[expert])
            kept_N = np.lexsort((often_N, -counts_N, -lifts_N))[:most]
            rows = [
                (int(vocabulary.ids_V[first + often_N[n]]), int(counts_N[n]), float(lifts_N[n]))
                for n in kept_N
            ]
            merged = best[expert] + rows
            best[expert] = sorted(merged, key=lambda row: (-row[2], -row[1], row[0]))[:most]
    return best
