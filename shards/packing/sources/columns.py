"""Which columns of a Parquet or Arrow file hold the images, their names and their labels."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from shards.errors import PackError
from shards.packing.sources.labels import told_apart
from shards.words import display

_URL = "url"
_CHOOSE = "choose one by --image-column"


class Columns(NamedTuple):
    """The columns that are read.

    Attributes:
        image: The column with the images.
        nested: Whether it is a struct with the fields `bytes` and perhaps `path`, as Hugging Face writes images.
        named: Whether that struct has the field `path`, which is the image's name.
        label: The column with the labels; None if there is none.
        classes: Names of the classes by number, of a ClassLabel; empty if the file does not name them.
        remark: What to tell the user about the choice; empty if nothing.
        name: The column with the names in place of that field; None if there is none.
        url: The column with the URLs that the images were fetched from; None if there is none.
    """

    image: str
    nested: bool
    named: bool
    label: str | None
    classes: tuple[str, ...]
    remark: str
    name: str | None
    url: str | None

    @property
    def content(self) -> str:
        """The leaf column with the bytes."""
        return f"{self.image}.bytes" if self.nested else self.image

    @property
    def cheap(self) -> list[str]:
        """The leaf columns with everything but the bytes."""
        names = (self.called, self.label, self.url)
        return list(dict.fromkeys(name for name in names if name is not None))

    @property
    def called(self) -> str | None:
        """The leaf column with the names; None if there is none."""
        return self.name or (f"{self.image}.path" if self.named else None)


def candidates(schema: Any) -> tuple[list[str], list[str]]:
    """Columns with images in structs, and columns of plain bytes, which may be images."""
    structs = [field.name for field in schema if _is_image_struct(field.type)]
    return structs, [field.name for field in schema if _is_binary(field.type)]


def chosen(schema: Any, image: str | None, label: str | None, name: str | None, place: str) -> Columns:
    """The columns of a file.

    Args:
        schema: Its pyarrow.Schema.
        image: Name of the column with images; None: the only one that can be.
        label: Name of the column with labels; None: the only ClassLabel, if the file says that it has one.
        name: Name of the column with the images' names; None: the field `path` beside the bytes, if there is one.
        place: The file, for messages.

    Raises:
        PackError: There is no such column, none that can hold images, or several.
    """
    structs, plain = candidates(schema)
    if image is None:
        image = _only(structs or plain, schema, place)
    elif image not in schema.names:
        raise PackError(f"{display(place)} has no column {image!r}; {_listed(schema)}")
    elif image not in structs + plain:
        kind = schema.field(image).type
        raise PackError(
            f"--image-column {image} of {display(place)} holds {kind}; it has to hold bytes, or structs with the field"
            " `bytes`"
        )
    named_classes = _class_labels(schema)
    remark = ""
    if label is None and len(named_classes) == 1:
        label = next(iter(named_classes))
    elif label is None and named_classes:
        remark = f"the columns {', '.join(named_classes)} have classes; --label-column takes the labels from one"
    elif label is not None and label not in schema.names:
        raise PackError(f"{display(place)} has no column {label!r} (--label-column); {_listed(schema)}")
    elif label is None and "label" in schema.names and image != "label":
        remark = "the column label is not used; --label-column label takes the labels from it"
    if label is not None:
        _check_label(schema.field(label).type, label, place)
    if name is not None:
        _check_name(schema, name, place)
    named = image in structs and any(field.name == "path" for field in schema.field(image).type)
    classes = tuple(told_apart(list(named_classes.get(label or "", ()))))
    return Columns(image, image in structs, named, label, classes, remark, name, _urls(schema, image))


def _only(names: list[str], schema: Any, place: str) -> str:
    if not names:
        raise PackError(
            f"{display(place)} has no column with images, which are bytes or structs with the field `bytes`;"
            f" {_listed(schema)}"
        )
    if len(names) > 1:
        raise PackError(f"{display(place)} has several columns that can be images: {', '.join(names)}; {_CHOOSE}")
    return names[0]


def _listed(schema: Any) -> str:
    more = ", ..." if len(schema.names) > 20 else ""
    names = [f"{field.name} ({field.type})" for field in schema]
    return f"its columns are: {display(', '.join(names[:20]))}{more}" if names else "it has no columns"


def _is_binary(kind: Any) -> bool:
    from pyarrow import types

    return any(
        test(kind) for test in (types.is_binary, types.is_large_binary, types.is_fixed_size_binary)
    ) or "binary_view" in str(kind)


def _is_image_struct(kind: Any) -> bool:
    from pyarrow import types

    return types.is_struct(kind) and any(field.name == "bytes" and _is_binary(field.type) for field in kind)


def _class_labels(schema: Any) -> dict[str, list[str]]:
    """Names of the classes of each ClassLabel, from the metadata that Hugging Face's `datasets` writes."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return {
            name: [str(each) for each in feature["names"]]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and name in schema.names
        }
    except (ValueError, KeyError, TypeError, AttributeError):  # of another program, or of no data set
        return {}


def _check_label(kind: Any, name: str, place: str) -> None:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    known = (
        *(types.is_string, types.is_large_string, types.is_binary, types.is_large_binary),
        *(types.is_integer, types.is_floating, types.is_decimal, types.is_boolean, types.is_null),
    )
    if not any(test(kind) for test in known):
        raise PackError(f"column {name!r} of {display(place)} holds {kind}, not numbers or strings, which labels are")


def _check_name(schema: Any, name: str, place: str) -> None:
    from pyarrow import types

    if name not in schema.names:
        raise PackError(f"{display(place)} has no column {name!r} (--name-column); {_listed(schema)}")
    kind = schema.field(name).type
    if not (types.is_integer(kind) or _is_text(kind)):
        raise PackError(f"column {name!r} of {display(place)} holds {kind}, not strings or whole numbers")


def _urls(schema: Any, image: str) -> str | None:
    """The column `url`, as img2dataset writes it, if it holds text."""
    return _URL if image != _URL and _URL in schema.names and _is_text(schema.field(_URL).type) else None


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(kind) or types.is_large_string(kind)
