"""Plain-text tables for people; machines get `--json`."""

from collections.abc import Sequence

from jax_sa.cli.output import printable


def format_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns padded to their widest cell: the first column to the left, the others to the right.

    A float is shown with two decimals, anything else as `str` gives it, control characters escaped.
    """
    cells = [
        [f"{cell:.2f}" if isinstance(cell, float) else printable(str(cell)) for cell in row]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]

    def line(row: Sequence[str]) -> str:
        first, *others = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join([first, *others]).rstrip()

    return "\n".join([line(headers), "  ".join("-" * width for width in widths), *map(line, cells)])
