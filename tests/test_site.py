"""The site builds without a warning, and its reference has every public name with a docstring."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = {
    "jax_sa": "jax_sa/__init__.py",
    "jax_sa.cache_schema": "jax_sa/cache_schema/__init__.py",
}

pytest.importorskip("mkdocs")
griffe = pytest.importorskip("griffe")


def build(config, site):
    """Builds a site as its command does, and returns the exit status and what it printed."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(config)]
    result = subprocess.run(
        [*command, "--site-dir", str(site)],
        cwd=site.parent,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    return result.returncode, result.stdout + result.stderr


def test_builds(tmp_path):
    status, output = build(ROOT / "mkdocs.yml", tmp_path / "site")
    assert status == 0, output
    assert "jax_sa.extend_lookup" in (tmp_path / "site/docs/reference/index.html").read_text()


@pytest.mark.parametrize(
    "page", ["[a page](nowhere.md)", "[a heading](#nowhere)", "::: jax_sa.no_such_name"]
)
def test_what_leads_nowhere_fails(tmp_path, page):
    """The site's own rules and plugins, on another page."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text(f"# Title\n\n{page}\n")
    config = (ROOT / "mkdocs.yml").read_text()
    config = re.sub(r"^hooks:.*\n", "", config, flags=re.MULTILINE).partition("\nnav:")[0]
    (tmp_path / "mkdocs.yml").write_text(config.replace("paths: [.]", f"paths: ['{ROOT}']"))
    status, output = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert status != 0
    assert "nowhere" in output or "no_such_name" in output


def public_names():
    for package, path in PACKAGES.items():
        for name in re.findall(r"import (\w+) as \1\n", (ROOT / path).read_text()):
            if f"{package}.{name}" not in PACKAGES:
                yield f"{package}.{name}"
    for name in re.findall(r"^def ([a-z]\w*)", (ROOT / "jax_sa/plot.py").read_text(), re.MULTILINE):
        yield f"jax_sa.plot.{name}"


def test_reference_has_every_public_name():
    page = (ROOT / "docs/reference.md").read_text()
    names = re.findall(r"^::: (\S+)$", page, re.MULTILINE)
    assert len(set(names)) == len(names)
    assert set(names) == set(public_names())


@pytest.fixture(scope="module")
def package():
    return griffe.load("jax_sa", search_paths=[str(ROOT)])


@pytest.mark.parametrize("name", list(public_names()))
def test_name_is_documented(package, name):
    """The name, and its fields, properties and methods."""
    found = package[name.removeprefix("jax_sa.")]
    found = found.final_target if found.is_alias else found
    members = [] if found.is_function or found.is_attribute else found.members.values()
    public = [found, *(member for member in members if not member.name.startswith("_"))]
    assert not [thing.path for thing in public if not thing.has_docstring]
