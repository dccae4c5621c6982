"""The options that benchmarks share, and their results: a table for people, JSON for machines."""

import argparse
import json
import pathlib
from typing import Any

from jax_sa.cli.table import format_table


def positive(text: str) -> int:
    """An option's value as an int of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number


def writable(text: str) -> pathlib.Path:
    """The path of a file that can be written, tried before the work is done."""
    try:
        open(text, "a").close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text}: cannot be written: {error.strerror}") from None
    return pathlib.Path(text)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds the option `--json`."""
    parser.add_argument("--json", type=writable, metavar="FILE", help="also write the figures here")


def report(rows: list[dict[str, Any]], path: pathlib.Path | str | None, **facts: Any) -> None:
    """Writes the rows and the facts about them to `path`, if there is one; prints the rows."""
    if path:
        pathlib.Path(path).write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n")
    print(format_table(list(rows[0]), [list(row.values()) for row in rows]))
