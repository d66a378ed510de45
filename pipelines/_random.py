"""Random numbers as a pure function of a counter: Philox-4x32-10, vectorised in numpy.

Counter-based, because a draw must not depend on how many came before it: any sample of any epoch is drawn directly, in
any order and on any rank.
"""

from __future__ import annotations

import numpy as np

# Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.3
_MULTIPLIER_0, _MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
_LOW, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox(counter: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], key: int) -> np.ndarray:
    """Philox-4x32-10 of many counters under one key.

    Args:
        counter: four words, arrays of unsigned 32-bit values (any integer dtype) that broadcast together.
        key: 64 bits; of a larger value the low 64 bits are used.

    Returns:
        uint64[..., 4] of the broadcast shape, each element a 32-bit random word.
    """
    # 32-bit words are kept in 64-bit integers, because numpy has no multiplication that returns the high word
    c0, c1, c2, c3 = np.broadcast_arrays(*(np.asarray(word).astype(np.uint64) & _LOW for word in counter))
    key_0, key_1 = key & 0xFFFFFFFF, (key >> 32) & 0xFFFFFFFF
    for _ in range(10):
        product_0, product_1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        c0, c2 = (
            (product_1 >> _SHIFT) ^ c1 ^ np.uint64(key_0),
            (product_0 >> _SHIFT) ^ c3 ^ np.uint64(key_1),
        )
        c1, c3 = product_1 & _LOW, product_0 & _LOW
        key_0, key_1 = (key_0 + _WEYL_0) & 0xFFFFFFFF, (key_1 + _WEYL_1) & 0xFFFFFFFF
    return np.stack((c0, c1, c2, c3), axis=-1)


def uniforms(ids: np.ndarray, *, seed: int, epoch: int, stream: int, count: int) -> np.ndarray:
    """Uniform numbers for each id, the same ones whatever other ids are asked for with it.

    Args:
        ids: int64[N], 0 or more.
        seed: key of the generator (its low 64 bits).
        epoch: 0 or more, below 2**32.
        stream: number of the independent sequence, 0 to 2**16 - 1.
        count: numbers per id.

    Returns:
        float64[N, count] in the open interval (0, 1), 32 random bits each.
    """
    ids = np.asarray(ids, dtype=np.int64)[:, None]
    # the counter is (id, id's high word, epoch, block); streams differ in the block's high half, which no count reaches
    block = np.arange((count + 3) // 4)[None, :] + (stream << 16)
    words = philox((ids, ids >> 32, np.asarray(epoch), block), seed)
    # the centres of 2**32 intervals, so neither 0 nor 1
    return (words.reshape(len(ids), words.shape[1] * 4)[:, :count] + 0.5) * 2.0**-32
