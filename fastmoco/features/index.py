"""A FAISS index of written features: OUT/index.faiss, and OUT/index.json, which says of which features it is."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastmoco.features.parts import EmbeddingError, opened, read_part, read_rows
from fastmoco.features.search import Match, match_of, of_length_one
from fastmoco.flags import ConfigError
from fastmoco.runs.progress import progress, waiting
from shards.format.manifest import parse_json
from shards.storage.base import Store
from shards.storage.store import open_store
from shards.words import counted, in_words

FILE, RECORD = "index.faiss", "index.json"
FLAT = 100_000
"""Images up to which all are compared: with more, those of the nearest lists alone (benchmarks/search_index.py)."""
RECALL = 0.95
"""Share of the ten nearest images that an index of lists finds at least, or it searches more lists."""
_QUERIES, _NEAREST = 200, 10
_TRAINED = 40  # images to a list, of which the lists are learnt; FAISS warns below 39
_ROUNDS = 10  # of k-means; later ones move the lists little
_OF_FEATURES = ("set", "encoder", "image_size", "resize", "precision", "dtype", "format", "parts", "part_size", "rows")
_REMEDY = "run the same fastmoco embed command with --index again"


@dataclass(frozen=True)
class Index:
    """An index that fits its features.

    Attributes:
        library_index: FAISS's, of features of length 1 by inner product.
        record: the content of index.json.
    """

    library_index: Any
    record: dict[str, Any]

    @property
    def in_words(self) -> str:
        """What it searches, for messages."""
        return self.record["what"]

    def most_similar(self, place: str | Path, queries_QD: np.ndarray, k: int) -> list[list[Match]]:
        """As `search.most_similar`, by the index; reads the names of the parts that hold what is found."""
        store, about = opened(place)
        dim, asked = about["dim"], queries_QD.shape[1]
        if dim != asked:
            raise EmbeddingError(f"the features in {place} have dimension {dim}, those asked for {asked}")
        unit_QD = np.ascontiguousarray(of_length_one(queries_QD))
        cosines_QK, rows_QK = self.library_index.search(unit_QD, min(k, self.record["rows"]))
        sizes = np.array(self.record["part_rows"], np.int64)
        ends = np.cumsum(sizes)
        parts_QK = np.searchsorted(ends, rows_QK, side="right")
        kept = {part: read_part(store, about, part, features=False) for part in set(parts_QK[rows_QK >= 0].tolist())}
        found = [
            [
                match_of(kept[part], int(row - ends[part] + sizes[part]), float(cosine), about["classes"])
                for part, row, cosine in zip(*columns, strict=True)
                if row >= 0  # there are fewer in the lists
            ]
            for columns in zip(parts_QK.tolist(), rows_QK.tolist(), cosines_QK.tolist(), strict=True)
        ]
        return [sorted(matches, key=lambda one: (-one.similarity, one.id)) for matches in found]


def faiss() -> Any:
    """The package; raises ConfigError where it is not installed."""
    logging.getLogger("faiss").setLevel(logging.WARNING)  # at INFO it logs which of its variants it loads
    try:
        import faiss
    except ImportError:
        raise ConfigError("an index needs FAISS: pip install 'fastmoco[faiss]'") from None
    return faiss


def build(place: str | Path, about: dict[str, Any], flat: int = FLAT) -> dict[str, Any]:
    """Write the index of complete features, unless it is there.

    Up to `flat` images all are compared with a query. Of more, the features are sorted into about 4·√N lists by
    k-means, and kept in half precision; a query is compared with the lists that are nearest to it, as many as find
    RECALL of the ten nearest images of 200 of the set's own.

    Args:
        place: folder or URL of the features.
        about: the content of embedding.json.
        flat: that number of images.

    Returns:
        The content of index.json.

    Raises:
        ConfigError: FAISS is not installed.
        EmbeddingError: the features cannot be read.
        OSError: the index cannot be written.
    """
    library, rows, dim = faiss(), about["rows"], about["dim"]
    with open_store(place) as store:
        found = _record(store)
        size = store.size(FILE) if FILE in store.names() else None
        if found is not None and found["of"] == identity(about) and found["bytes"] == size:
            return found
        index = library.IndexFlatIP(dim) if rows <= flat else _of_lists(library, place, rows, dim)
        record = {"of": identity(about), "rows": rows, "faiss": library.__version__}
        record |= _filled(index, place, rows, dim, flat)
        files = {FILE: store.partial(FILE), RECORD: store.partial(RECORD)}
        try:
            library.write_index(index, str(files[FILE]))
            record["bytes"] = files[FILE].stat().st_size
            files[RECORD].write_text(json.dumps(record) + "\n")
            store.put(files)
        except RuntimeError as error:  # FAISS's, of a full disk
            raise EmbeddingError(f"the index of {store.url} cannot be written: {error}") from None
        finally:
            for path in files.values():
                path.unlink(missing_ok=True)
    return record


def _of_lists(library: Any, place: str | Path, rows: int, dim: int) -> Any:
    """An empty index of lists, whose centres have been learnt from some of the features."""
    lists = 2 ** round(math.log2(4 * math.sqrt(rows)))
    index = library.index_factory(dim, f"IVF{lists},SQfp16", library.METRIC_INNER_PRODUCT)
    index.cp.spherical, index.cp.niter = True, _ROUNDS
    with waiting(f"sorting the features into {lists:,} lists"):
        index.train(np.concatenate(list(_units(place, _evenly(rows, _TRAINED * lists)))))
    return index


def _filled(index: Any, place: str | Path, rows: int, dim: int, flat: int) -> dict[str, Any]:
    """Add all features to an index; returns the rows of each part, and what a search compares."""
    exact = _Exact(_evenly(rows, _QUERIES), dim)
    if rows > flat:
        exact.queries_QD = np.concatenate(list(_units(place, exact.rows)))
    part_rows: list[int] = []
    with progress("index", rows) as bar:
        for unit_ND in _units(place):
            index.add(unit_ND)
            if rows > flat:
                exact.add(unit_ND, sum(part_rows))
            part_rows.append(len(unit_ND))
            bar.advance(len(unit_ND))
    if rows > flat:
        return {"part_rows": part_rows, **_probed(index, exact)}
    return {"part_rows": part_rows, "what": f"all of {counted(rows, 'image')}", "lists": 0, "probed": 0, "recall": 1.0}


def identity(about: dict[str, Any]) -> str:
    """A hash of all that decides which features are in which row, hex."""
    return hashlib.sha256(json.dumps([about.get(name) for name in _OF_FEATURES]).encode()).hexdigest()


def open_index(place: str | Path, about: dict[str, Any]) -> tuple[Index | None, str]:
    """The index of features, and if there is none that can be used, why; the reason is empty if there is none at all.

    Args:
        place: folder or URL.
        about: the content of embedding.json.

    Raises:
        EmbeddingError: the index is damaged or cannot be read.
    """
    try:
        with open_store(place) as store:
            record = _record(store)
            if record is None:
                return None, ""
            if record["of"] != identity(about):
                return None, f"the index in {store.url} is of other features; {_REMEDY}"
            try:
                library = faiss()
            except ConfigError as error:
                return None, f"the index in {store.url} is not used: {error}"
            if store.size(FILE) != record["bytes"]:
                raise EmbeddingError(f"{store.url}/{FILE} is damaged; remove it, and {_REMEDY}")
            if store.local is None:
                index = library.deserialize_index(np.frombuffer(store.read(FILE), np.uint8))
            else:
                # of the lists only those are read that are searched
                index = library.read_index(str(store.local / FILE), library.IO_FLAG_MMAP if record["lists"] else 0)
    except FileNotFoundError:
        raise EmbeddingError(f"{place}/{FILE} is missing; {_REMEDY}") from None
    except OSError as error:
        raise EmbeddingError(in_words(error)) from None
    except RuntimeError as error:  # FAISS's
        if isinstance(error, EmbeddingError):
            raise
        raise EmbeddingError(f"{place}/{FILE} is damaged; remove it, and {_REMEDY}") from None
    if index.ntotal != about["rows"] or index.d != about["dim"]:
        raise EmbeddingError(f"{place}/{FILE} is damaged; remove it, and {_REMEDY}")
    if record["lists"]:
        library.extract_index_ivf(index).nprobe = record["probed"]
    return Index(index, record), ""


def _record(store: Store) -> dict[str, Any] | None:
    try:
        record = parse_json(store.read(RECORD, 1 << 30))
        keys = ("of", "rows", "part_rows", "lists", "probed", "bytes", "what", "recall")
        return record if isinstance(record, dict) and record.keys() >= set(keys) else None
    except (FileNotFoundError, ValueError):
        return None


class _Exact:
    """The nearest images of some of the set's own, by comparing all."""

    def __init__(self, rows: np.ndarray, dim: int) -> None:
        self.rows, self.queries_QD = rows, np.zeros((0, dim), np.float32)
        self._cosines = np.full((len(rows), _NEAREST), -np.inf, np.float32)
        self.nearest = np.full((len(rows), _NEAREST), -1, np.int64)

    def add(self, unit_ND: np.ndarray, start: int) -> None:
        """Compare with the features of the rows from `start` on."""
        cosine = self.queries_QD @ unit_ND.T
        places = np.arange(start, start + len(unit_ND))
        cosine[self.rows[:, None] == places[None]] = -np.inf  # not with themselves
        cosine = np.concatenate([self._cosines, cosine], 1)
        places = np.concatenate([self.nearest, np.broadcast_to(places, (len(self.rows), len(places)))], 1)
        best = np.argpartition(-cosine, _NEAREST - 1, axis=1)[:, :_NEAREST]
        self._cosines, self.nearest = np.take_along_axis(cosine, best, 1), np.take_along_axis(places, best, 1)

    def recall(self, index: Any) -> float:
        """Share of them that an index finds."""
        _, found = index.search(self.queries_QD, _NEAREST + 1)
        hits = [
            len(set(near) & set(given) - {row})
            for near, given, row in zip(self.nearest.tolist(), found.tolist(), self.rows.tolist(), strict=True)
        ]
        return sum(hits) / self.nearest.size


def _probed(index: Any, exact: _Exact) -> dict[str, Any]:
    """Choose the number of lists that are searched."""
    lists, index.nprobe = index.nlist, 4
    while (recall := exact.recall(index)) < RECALL and index.nprobe < lists:
        index.nprobe = min(lists, 2 * index.nprobe)
    what = f"{index.nprobe:,} of {lists:,} lists, which hold {100 * recall:.0f} % of the ten nearest images"
    return {"what": what, "lists": lists, "probed": index.nprobe, "recall": round(recall, 4)}


def _evenly(rows: int, most: int) -> np.ndarray:
    """int64 [n], at most `most` rows, evenly spaced."""
    return np.unique(np.linspace(0, rows - 1, min(rows, most)).round().astype(np.int64))


def _units(place: str | Path, chosen: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Features of length 1, float32 [n, D], part by part; of the chosen rows, in ascending order, or of all."""
    start = 0
    for _, rows in read_rows(place):
        here = rows.features
        if chosen is not None:
            here = here[chosen[(chosen >= start) & (chosen < start + len(here))] - start]
        start += len(rows.ids)
        yield np.ascontiguousarray(of_length_one(here))
