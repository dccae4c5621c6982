"""The source lines that JAX tells XLA of."""

import os
from collections.abc import Iterable

from jax.extend import source_info_util


def leave_out(folders: Iterable[str]) -> None:
    """Of operations from files in these folders, JAX tells the users' lines that led there.

    XLA reads the lines of each operation several times while it compiles, which takes seconds for a
    decoder of many blocks: about one in ten.
    """
    for folder in folders:
        source_info_util.register_exclusion(os.path.join(folder, ""))
