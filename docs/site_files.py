"""What the site holds: the repository's own documents, each at its own path.

A link between two files so works in the repository and on the site alike. MkDocs calls `on_files`.
"""

import pathlib
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).parents[1]
PUBLISHED = (
    "*.md",
    "docs/*.md",
    "docs/images/*",
    "examples/*.py",
    "examples/*/*.md",
    "notebooks/*.ipynb",
)


def on_files(files: Files, config: Any) -> Files:
    """The published files in place of those below docs/; the theme's own stay."""
    kept = [file for file in files if file.src_dir != config.docs_dir]
    paths = sorted(path for pattern in PUBLISHED for path in ROOT.glob(pattern))
    published = [
        File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path))
        for path in paths
    ]
    return Files([*kept, *published])
