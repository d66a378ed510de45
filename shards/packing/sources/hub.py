"""Data sets of Hugging Face's `datasets` as items: the files of their images as they are, not decoded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from shards.errors import PackError
from shards.images.encode import Rejected
from shards.packing.sources.labels import told_apart


def adapted(source: Any, image_column: str | None, label_column: str | None) -> Any:
    """A data set of `datasets` whose items are dictionaries with the bytes of a file; anything else unchanged.

    Args:
        source: A Dataset or IterableDataset. One with a format or a transform of its own gives what these make.
        image_column: Column with the images; None: the only one of the type Image.
        label_column: Column with the labels; None: the only one of the type ClassLabel, if there is one.

    Raises:
        PackError: A column is missing, or there are several; or the source is not of `datasets` and a column is given.
    """
    if type(source).__module__.partition(".")[0] != "datasets":
        if image_column is not None or label_column is not None:
            raise PackError("image_column and label_column are for data sets of Hugging Face and for files")
        return source
    if isinstance(source, dict):
        splits = ", ".join(source)
        raise PackError(
            f"a {type(source).__name__} has the splits {splits}; give one, as in data[{next(iter(source), '')!r}]"
        )
    features = source.features or {}
    if getattr(source, "format", {"type": None})["type"] is not None:
        return source
    image = _chosen("image_column", image_column, "Image", features)
    if image is None:
        return source
    label = _chosen("label_column", label_column, "ClassLabel", features, optional=True)
    columns = [image] if label is None else [image, label]
    data = source.select_columns(columns)
    if type(features[image]).__name__ == "Image":
        data = data.cast_column(image, type(features[image])(decode=False))
    classes = getattr(features[label], "names", None) if label is not None else None
    kind = _Indexed if hasattr(source, "__len__") else _Streamed
    return kind(data, image, label, None if classes is None else told_apart(list(classes)))


def _chosen(option: str, name: str | None, kind: str, features: Any, optional: bool = False) -> str | None:
    if name is not None:
        if name not in features:
            raise PackError(f"the data set has no column {name!r} ({option}); its columns are: {', '.join(features)}")
        return name
    found = [each for each, feature in features.items() if type(feature).__name__ == kind]
    if len(found) > 1 and not optional:
        raise PackError(f"the columns {', '.join(found)} of the data set hold images; choose one by {option}=")
    return found[0] if len(found) == 1 else None


class _Streamed:
    """An IterableDataset."""

    def __init__(self, data: Any, image: str, label: str | None, classes: list[str] | None) -> None:
        self.data, self.image, self.label, self.classes = data, image, label, classes

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self._item, self.data)

    def _item(self, row: dict[str, Any]) -> dict[str, Any]:
        image, name = row[self.image], None
        if isinstance(image, dict):
            name = image["path"]
            image = image["path"] if image["bytes"] is None else image["bytes"]
        if image is None:
            image = Rejected("no image: the row holds null")
        return {"image": image, "label": None if self.label is None else row[self.label], "name": name}


class _Indexed(_Streamed):
    """A Dataset."""

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self._item(self.data[row])
