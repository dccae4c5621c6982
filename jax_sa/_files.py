"""Files that a user names."""

import errno
import pathlib
import stat


def check_regular_file(path: pathlib.Path) -> None:
    """Raises OSError for what cannot be read like a file, such as a FIFO that nobody writes to."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
