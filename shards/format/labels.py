"""The label in a JSON member of a WebDataset sample."""

from __future__ import annotations

import json


def json_label(data: bytes) -> str | None:
    """The value of `label` in a JSON object, a number or a text; None where there is none.

    Raises:
        ValueError: It is no JSON, or its label is neither number nor text.
    """
    try:
        values = json.loads(data)
    except RecursionError as error:
        raise ValueError(str(error)) from None
    value = values.get("label") if isinstance(values, dict) else None
    if isinstance(value, bool) or not isinstance(value, str | int | None):
        raise ValueError("its label is neither number nor text")
    return None if value is None else str(value)
