"""How every benchmark ends: a table for people, JSON for machines."""

import json
import pathlib
from typing import Any

from jax_sa.cli.table import format_table


def report(rows: list[dict[str, Any]], path: str | None, **facts: Any) -> None:
    """Prints the rows; writes them and what else is to be known of them to `path`, if given."""
    print(format_table(list(rows[0]), [list(row.values()) for row in rows]))
    if path:
        pathlib.Path(path).write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n")
