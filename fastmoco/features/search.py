"""The images of written features that are most similar to others, by cosine similarity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastmoco.features.parts import EmbeddingError, opened, read_part, read_rows
from fastmoco.features.rows import Rows
from shards.words import display, one_form


@dataclass(frozen=True)
class Match:
    """An image that is similar to the one that was asked for.

    Attributes:
        similarity: cosine of the angle between their features, -1 to 1.
        id: its sample id.
        name: its name, as of `ShardSet.names`.
        class_name: name of its class; None without a label.
    """

    similarity: float
    id: int
    name: str
    class_name: str | None


def most_similar(place: str | Path, queries_QD: np.ndarray, k: int) -> list[list[Match]]:
    """The k images whose features have the largest cosine similarity to each query; one part is in memory at a time.

    Args:
        place: folder or URL of features.
        queries_QD: float32 [Q, D].
        k: number of images for each query; all of them if there are fewer.

    Raises:
        EmbeddingError: the features cannot be read, or have another dimension.
    """
    queries_QD = of_length_one(queries_QD)
    best: list[list[Match]] = [[] for _ in queries_QD]
    for classes, rows in _parts(place):
        dim, asked = rows.features.shape[1], queries_QD.shape[1]
        if dim != asked:
            raise EmbeddingError(f"the features in {place} have dimension {dim}, those asked for {asked}")
        similarity_QN = queries_QD @ of_length_one(rows.features).T
        for query, similarities_N in enumerate(similarity_QN):
            found = np.argpartition(-similarities_N, min(k, len(similarities_N)) - 1)[:k] if len(rows.ids) else ()
            matches = [match_of(rows, row, float(similarities_N[row]), classes) for row in found]
            # equal similarities, of copies of an image, in the order of their ids
            best[query] = sorted([*best[query], *matches], key=lambda one: (-one.similarity, one.id))[:k]
    return best


def features_of(place: str | Path, names: AbstractSet[str]) -> dict[str, tuple[int, np.ndarray]]:
    """Id and feature, float32 [D], of each of these names that an image has. Raises EmbeddingError.

    A set spells out what cannot be printed, such as a line feed, and systems write accents in two forms: a name is
    found as it is in the set or as the file is called.
    """
    given = {name: one_form(display(name)) for name in names}
    found = _by_name(place, set(given.values()))
    return {name: found[key] for name, key in given.items() if key in found}


def names_in_words(place: str | Path) -> str:
    """What the names in features are like, for the error of one that none of them has."""
    store, about = opened(place)
    for part in range(about["parts"]):
        for name in read_part(store, about, part, features=False).names[:1]:
            return f"{place}, which has names like {display(name)}"
    return f"{place}, which has none"


def _by_name(place: str | Path, names: AbstractSet[str]) -> dict[str, tuple[int, np.ndarray]]:
    found: dict[str, tuple[int, np.ndarray]] = {}
    store, about = opened(place)
    for part in range(about["parts"]):
        kept = read_part(store, about, part, features=False)
        wanted = names - found.keys()
        rows = reversed(list(enumerate(map(one_form, kept.names))))
        places = {name: row for row, name in rows if name in wanted}
        if places:
            features = read_part(store, about, part).features
            found |= {name: (int(kept.ids[row]), features[row].astype(np.float32)) for name, row in places.items()}
    return found


def _parts(place: str | Path) -> Iterator[tuple[list[str], Rows]]:
    for about, rows in read_rows(place):
        yield about["classes"], rows


def match_of(rows: Rows, row: int, similarity: float, classes: Sequence[str]) -> Match:
    """The image in a row of a part."""
    label = int(rows.labels[row])
    name = classes[label] if 0 <= label < len(classes) else None
    return Match(similarity, int(rows.ids[row]), rows.names[row], name)


def of_length_one(features_ND: np.ndarray) -> np.ndarray:
    """float32 [N, D] of length 1; zeros stay zeros."""
    features_ND = features_ND.astype(np.float32)
    return features_ND / np.maximum(np.linalg.norm(features_ND, axis=1, keepdims=True), np.finfo(np.float32).tiny)
