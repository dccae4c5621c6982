"""JSON that comes from elsewhere."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from jax_sa._files import check_regular_file


def parse_json(text: str | bytes) -> Any:
    """The value that a text holds; ValueError if it is not JSON or is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json_object(path: pathlib.Path) -> Mapping[str, Any]:
    """The object in a file; ValueError if it holds anything else, OSError if it cannot be read."""
    check_regular_file(path)
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content
