"""Prompts from a file with a JSON object per line: `group` and `prompt`, both text."""

import dataclasses
import json
import pathlib


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One text to go on with, or in a chat one request to answer."""

    group: str
    """The kind of prompt, by which figures are summed up."""
    text: str


def read_prompts(path: pathlib.Path) -> list[Prompt]:
    """The prompts of a file; ValueError of one line that names the file and the line at fault."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    prompts = [_parse(f"{path}:{number}", line) for number, line in enumerate(lines, 1)]
    if not prompts:
        raise ValueError(f"{path}: holds no prompts")
    return prompts


def _parse(place: str, line: str) -> Prompt:
    try:
        entry = json.loads(line)
        group, text = entry.get("group", "prompts"), entry["prompt"]
    except (ValueError, KeyError, AttributeError, RecursionError):
        raise ValueError(
            f'{place}: expected {{"group": ..., "prompt": ...}}, got {line[:40]!r}'
        ) from None
    if not isinstance(text, str) or not text:
        raise ValueError(f"{place}: prompt: expected a text, got {text!r}")
    return Prompt(str(group), text)
