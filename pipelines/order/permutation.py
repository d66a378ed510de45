"""Keyed permutations, evaluated where they are needed and never stored."""

from __future__ import annotations

import numpy as np

from pipelines._random import philox

# Four rounds suffice with ideal round functions (Luby and Rackoff, SIAM J. Comput. 1988). splitmix64's finaliser is
# only a mixer, and small domains need more rounds. Twelve leave a margin.
_ROUNDS = 12
_STREAM = 0x0D0E  # separates these random words from those of the draws, whose streams are 0 to 3


def keys(seed: int, epoch: int, purpose: int, first: np.ndarray | int = 0, second: np.ndarray | int = 0) -> np.ndarray:
    """Round keys of permutations, one for each pair of numbers.

    Args:
        seed: the run's seed.
        epoch: 0 or more, below 2**32.
        purpose: what is permuted, 0 to 2**16 - 1; each purpose has random words of its own.
        first: int64[M] or a number, 0 to 2**28 - 1.
        second: likewise, 0 to 2**32 - 1.

    Returns:
        uint64[12, M], or [12, 1] for numbers.
    """
    # the low four bits count the rounds (12 of 16), the upper 28 hold `first`: together one 32-bit word of the counter
    rounds = np.arange(_ROUNDS)[:, None] + (np.atleast_1d(np.asarray(first, dtype=np.int64)) << 4)
    words = philox((rounds, np.asarray(second), np.asarray(epoch), np.asarray((_STREAM << 16) + purpose)), seed)
    return words[..., 0] << np.uint64(32) | words[..., 1]


def permute(places: np.ndarray, size: np.ndarray | int, round_keys: np.ndarray) -> np.ndarray:
    """Apply keyed permutations of [0, size) to places.

    An alternating Feistel network over Z_rows x Z_columns (Black and Rogaway, "Ciphers with arbitrary finite
    domains", CT-RSA 2002, section 5), the smallest near-square domain that holds all places. Results outside
    [0, size) are permuted again until they fall inside (cycle walking), which keeps the map a bijection.

    Args:
        places: int64[M] in [0, size).
        size: size of the permuted range, a number or int64[M], one for each place; below 2**50.
        round_keys: uint64[12, M] or [12, 1], from `keys`.

    Returns:
        int64[M] in [0, size).
    """
    sizes = np.asarray(size, dtype=np.int64)
    columns = np.floor(np.sqrt(sizes - 1)).astype(np.int64) + 1  # the ceiling of the root; exact below 2**50
    shape = (-(-sizes // columns), columns)
    result = _feistel(places, *shape, round_keys)
    outside = np.flatnonzero(result >= sizes)
    sizes, rows, columns = (np.broadcast_to(values, places.shape) for values in (sizes, *shape))
    round_keys = np.broadcast_to(round_keys, (_ROUNDS, len(places)))
    while outside.size:  # soon empty: fewer than `columns` places of the domain are outside
        again = _feistel(result[outside], rows[outside], columns[outside], round_keys[:, outside])
        result[outside] = again
        outside = outside[again >= sizes[outside]]
    return result


def _feistel(places: np.ndarray, rows: np.ndarray, columns: np.ndarray, round_keys: np.ndarray) -> np.ndarray:
    """A keyed permutation of [0, rows * columns)."""
    left, right = places // columns, places % columns
    for turn, key in enumerate(round_keys):
        if turn % 2 == 0:
            left = (left + _hashed(right, key, rows)) % rows
        else:
            right = (right + _hashed(left, key, columns)) % columns
    return left * columns + right


def _hashed(values: np.ndarray, key: np.ndarray, modulus: np.ndarray) -> np.ndarray:
    """int64[M] in [0, modulus) of values (int64[M]): splitmix64's finaliser (Steele et al., OOPSLA 2014)."""
    z = values.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + key
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) % modulus.astype(np.uint64)).astype(np.int64)
