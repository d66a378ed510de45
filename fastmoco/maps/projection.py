"""Two dimensions of features: by t-SNE (the extra `map`), or by principal components."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import numpy as np

from fastmoco.flags import ConfigError
from fastmoco.runs.progress import waiting

LEAST = 10
"""Images, at least, for t-SNE: of fewer there is no neighbourhood to keep."""
PERPLEXITY = 30.0
_COMPONENTS = 50  # to which t-SNE's input is reduced: van der Maaten and Hinton 2008, section 4.2, take 30, openTSNE 50


def plane(unit_ND: np.ndarray, method: str, seed: int) -> tuple[np.ndarray, str]:
    """Coordinates float64 [N, 2] of features of length 1, and how they were made, in words.

    Equal features, seed and versions give equal coordinates.

    Args:
        unit_ND: float32 [N, D].
        method: `tsne`, `pca`, or `auto`: t-SNE where it is installed and there are enough images.
        seed: of t-SNE.

    Raises:
        ConfigError: t-SNE was asked for, and is not installed or has too few images.
    """
    if method == "tsne" and len(unit_ND) < LEAST:
        raise ConfigError(
            f"--method tsne needs at least {LEAST} images, and there are {len(unit_ND)}; use --method pca"
        )
    reason = ""
    if len(unit_ND) < LEAST:
        reason = f"as there are fewer than {LEAST} images"
    elif not np.ptp(unit_ND, axis=0).any():
        reason = "as all features are equal"
    library = None if method == "pca" or reason else opentsne(needed=method == "tsne")
    if library is None:
        coordinates_N2, shares = components(unit_ND, 2)
        why = reason or "as openTSNE, of the extra `map`, is not installed"
        note = "" if method == "pca" else f", {why}"
        share = 100 * shares.sum()
        return coordinates_N2, f"PCA{note}: two principal components with {share:.0f} % of the variance"
    perplexity = min(PERPLEXITY, (len(unit_ND) - 1) / 3)
    reduced, _ = components(unit_ND, _COMPONENTS)
    # one thread: the sums of several come in any order, and the map would be another one each time
    logging.getLogger("openTSNE").setLevel(logging.WARNING)
    with warnings.catch_warnings(), waiting("the map by t-SNE"):
        warnings.simplefilter("ignore")  # of its own parts' future versions
        made = library.TSNE(perplexity=perplexity, random_state=seed, n_jobs=1).fit(reduced.astype(np.float64))
    words = f"t-SNE by openTSNE {library.__version__}: perplexity {perplexity:.3g}, seed {seed}, on {reduced.shape[1]}"
    return np.asarray(made, np.float64), f"{words} principal components"


def opentsne(needed: bool) -> Any:
    """The package; None where it is not installed, or ConfigError if it is needed."""
    try:
        import openTSNE
    except ImportError:
        if needed:
            raise ConfigError("--method tsne needs openTSNE: pip install 'fastmoco[map]', or --method pca") from None
        return None
    return openTSNE


def components(features_ND: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Principal components float64 [N, `count`], or as many as there are dimensions, and each one's share of variance.

    The largest weight of each is positive, so that equal features have equal components, whatever library solved them.
    """
    centred_ND = features_ND.astype(np.float64) - features_ND.mean(0, dtype=np.float64)
    covariance_DD = centred_ND.T @ centred_ND
    variances, axes = np.linalg.eigh(covariance_DD)  # in ascending order
    axes_DK = axes[:, ::-1][:, :count]
    axes_DK = axes_DK * np.sign(np.take_along_axis(axes_DK, np.abs(axes_DK).argmax(0)[None], 0))
    total = max(float(variances.sum()), np.finfo(np.float64).tiny)
    found = centred_ND @ axes_DK
    if found.shape[1] < 2 <= count:  # features of one dimension
        found = np.pad(found, ((0, 0), (0, 1)))
    return found, np.maximum(variances[::-1][:count], 0) / total
