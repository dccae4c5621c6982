"""What the site holds: the repository's own documents, each at its own path.

A link between two files so works in the repository and on the site alike. Notebooks are pages of
their text and code, without figures. MkDocs calls `on_files` and `on_page_markdown`.
"""

import json
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
    "examples/*/*.txt",
    "examples/*/*.py",
)
NOTEBOOKS = "notebooks/*.ipynb"


def on_files(files: Files, config: Any) -> Files:
    """The published files in place of those below docs/; the theme's own stay."""
    kept = [file for file in files if file.src_dir != config.docs_dir]
    paths = sorted(path for pattern in PUBLISHED for path in ROOT.glob(pattern))
    published = [
        File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path))
        for path in paths
    ]
    pages = [
        File.generated(
            config, f"notebooks/{path.stem}.md", content=notebook_page(json.loads(path.read_text()))
        )
        for path in sorted(ROOT.glob(NOTEBOOKS))
    ]
    return Files([*kept, *published, *pages])


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to notebooks lead to their pages."""
    return markdown.replace(".ipynb)", ".md)")


def notebook_page(notebook: dict[str, Any]) -> str:
    """The text and the code of a notebook, as Markdown."""
    cells = ((cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"])
    return "\n\n".join(
        f"```python\n{source}\n```" if kind == "code" else source for kind, source in cells
    )
