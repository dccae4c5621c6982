"""Where a command's results go: standard output, and a JSON file."""

import contextlib
import json
import os
import pathlib
import stat
import sys
from collections.abc import Callable, Iterator
from typing import Any


def printable(text: str) -> str:
    """The text with control characters escaped, so that none reaches a terminal."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def show(text: str) -> None:
    """Prints a text, and sees it through.

    Raises:
      ValueError: standard output is closed or full.
    """
    if sys.stdout is None:
        raise ValueError("standard output: closed")
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except OSError as error:
        _drop_standard_output()
        raise ValueError(f"standard output: {error.strerror}") from None


def _drop_standard_output() -> None:
    """Lets what is still buffered go nowhere: Python would fail to write it again at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


@contextlib.contextmanager
def json_file(option: str, path: pathlib.Path | None) -> Iterator[Callable[[Any], None]]:
    """Opens a file for results before the work, so that no work is done for one that fails.

    Yields a function that writes an object to the file, or does nothing where `path` is None. What
    the file held before stays until then, and a file that was not there does not stay empty.

    Raises:
      ValueError: the file cannot be written; it names the option and the path.
    """
    if path is None:
        yield lambda content: None
        return
    try:
        is_new = not path.exists()
        # Without O_NONBLOCK, a FIFO that nobody reads would be waited for.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK, 0o666)
    except OSError as error:
        raise _cannot_be_written(option, path, error) from None
    os.set_blocking(descriptor, True)
    written = False

    def write(content: Any) -> None:
        nonlocal written
        try:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.ftruncate(descriptor, 0)
            with open(descriptor, "w", encoding="utf-8", closefd=False) as file:
                file.write(json.dumps(content, indent=1) + "\n")
        except OSError as error:
            raise _cannot_be_written(option, path, error) from None
        written = True

    try:
        yield write
    finally:
        os.close(descriptor)
        if is_new and not written:
            path.unlink(missing_ok=True)


def _cannot_be_written(option: str, path: pathlib.Path, error: OSError) -> ValueError:
    return ValueError(f"{option}: {path}: cannot be written: {error.strerror}")
