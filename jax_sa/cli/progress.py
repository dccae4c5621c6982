"""A progress bar on a terminal; nothing where the output goes elsewhere."""

import sys

WIDTH = 32


class ProgressBar:
    """`[####    ] 12/30 traces`, rewritten in place on stderr."""

    def __init__(self, total: int, unit: str):
        self._total, self._unit, self._done = total, unit, 0
        self._shown = sys.stderr is not None and sys.stderr.isatty()  # None: it is closed

    def advance(self, count: int) -> None:
        """Counts `count` more as done; the last one ends the line."""
        self._done += count
        if not self._shown:
            return
        bar = "#" * (WIDTH * self._done // max(self._total, 1))
        end = "\n" if self._done >= self._total else ""
        line = f"\r[{bar:<{WIDTH}}] {self._done}/{self._total} {self._unit}"
        print(line, end=end, file=sys.stderr, flush=True)
