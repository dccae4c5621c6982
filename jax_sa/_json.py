"""JSON files that hold one object."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any


def read_json_object(path: pathlib.Path) -> Mapping[str, Any]:
    """The object in a file; ValueError if it holds anything else, OSError if it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content
