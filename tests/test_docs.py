"""The documents: links lead somewhere, files and names are those there are, examples run."""

import contextlib
import io
import pathlib
import re
import secrets

import attention_model
import jax.numpy as jnp
import packed_attention
import packed_model
import pytest
import toy_model
from test_package import PUBLIC

import jax_sa
from jax_sa import budget

ROOT = pathlib.Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*/*.md")])
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def prose(document):
    """The text of a document without its fenced examples."""
    return FENCED.sub("", document.read_text(encoding="utf-8"))


def anchors(document):
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links():
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
            if not re.match(r"[a-z]+:", target):
                yield pytest.param(document, target, id=f"{document.name}:{target}")


@pytest.mark.parametrize(("document", "target"), list(links()))
def test_link_leads_somewhere(document, target):
    path, _, anchor = target.partition("#")
    linked = document.parent / path if path else document
    assert linked.exists()
    assert not anchor or anchor in anchors(linked)


def test_links_lead_from_the_readme_to_every_page():
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        document = waiting.pop()
        if document not in reached:
            reached.add(document)
            targets = re.findall(r"\]\(([^)\s#:]+\.md)", prose(document))
            waiting += [(document.parent / target).resolve() for target in targets]
    assert reached >= set(ROOT.glob("docs/*.md"))


def test_every_public_name_is_in_the_docs():
    documents = [ROOT / "README.md", *ROOT.glob("docs/*.md")]
    quoted = " ".join(
        code for document in documents for code in re.findall(r"`([^`\n]+)`", prose(document))
    )
    assert set(re.findall(r"\w+", quoted)) >= PUBLIC


def test_contributing_knows_every_file():
    """Its table names each source file of the library, and no other."""
    table = prose(ROOT / "CONTRIBUTING.md").partition("## Where things are")[2]
    rows = re.findall(r"^\| (`[^|]*`) \|", table, re.MULTILINE)
    files = set()
    for row in rows:
        folder = ""
        for name in re.findall(r"`([^`]+)`", row):  # a folder counts for the names after it
            if "/" in name:
                folder = name.rpartition("/")[0]
            found = list(ROOT.glob(name if "/" in name else f"{folder}/{name}"))
            assert found, name
            files.update(found)
    sources = [*ROOT.glob("jax_sa/*.py"), *(path for path in ROOT.glob("ffi/*") if path.is_file())]
    missing = {path for path in sources if path not in files}
    assert not missing
    packages = {path.parent for path in ROOT.glob("jax_sa/*/__init__.py")}
    assert packages <= files


def run(page, names):
    """Runs the examples of a page; every print must print the comment beside it."""
    printed = io.StringIO()
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    for code in blocks:
        with contextlib.redirect_stdout(printed):
            exec(compile(code, page, "exec"), names)
    expected = re.findall(r"^print\(.*\)  # (.*)$", "".join(blocks), re.MULTILINE)
    assert printed.getvalue().split() == " ".join(expected).split()
    return names


def test_examples_of_speed():
    names = run(
        "speed.md",
        {
            "jax_sa": jax_sa,
            "jnp": jnp,
            "model": toy_model.model,
            "packed_model": packed_model.model,
            "params": jnp.asarray(toy_model.TABLE),
            "cache": toy_model.init_cache(2, 64),
            "packed_cache": packed_model.row_cache(2, 64),
        },
    )
    generation, prompts = names["generation"], names["prompts"]
    assert generation.tokens[0].tolist() == toy_model.greedy(prompts[0], 32)
    assert generation.tokens[1].tolist() == toy_model.greedy(prompts[1, :5], 32)
    assert names["done"].tokens.tolist() == [toy_model.greedy(prompts[0], 8)] * 5


def test_examples_of_the_model_contract():
    run(
        "model_contract.md",
        {
            "jax_sa": jax_sa,
            "jnp": jnp,
            "model": attention_model.make(),
            "packed_model": packed_attention.make(),
            "init_packed_cache": packed_attention.init_cache,
            "params": attention_model.init_params(),
            "init_cache": attention_model.init_cache,
            "stack": attention_model.forward,
            "init_stack_cache": attention_model.init_keys,
            "stack_params": attention_model.init_params(),
        },
    )


def test_examples_of_trees():
    run("trees.md", {"jax_sa": jax_sa, "jnp": jnp})


def test_examples_of_state(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run("state.md", {"jax_sa": jax_sa, "jnp": jnp, "secrets": secrets})
    assert names["invalid"].tolist() == [0, 0]


def test_examples_of_pool():
    names = run("pool.md", {"jax_sa": jax_sa, "jnp": jnp})
    assert names["pool"].head.tolist() == [11 + 3 + 3]


def test_examples_of_sharding():
    names = run("sharding.md", {})
    assert names["state"].length.tolist() == [4] * names["slots"]


def test_examples_of_quickstart():
    run("quickstart.md", {})


def test_examples_of_engines():
    run("engines.md", {"jax_sa": jax_sa, "jnp": jnp})


def test_what_tuning_expects_of_drafts():
    """The table by match length is the rule that the decoders go by."""
    rows = re.findall(
        r"^\| (\d+) \| (\d+) % \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$",
        (ROOT / "docs/tuning.md").read_text(),
        re.MULTILINE,
    )
    assert [int(row[0]) for row in rows] == [2, 4, 8, 16, 32]
    place = jnp.arange(1, 17, dtype=jnp.int32)
    for match_length, first, *saved in rows:
        match = jnp.full(16, int(match_length), jnp.int32)
        holds = 1 - budget.failure_rate(jnp.full(16, jax_sa.Source.OWN), match, place)
        expected = jnp.cumsum(jnp.cumprod(holds))[jnp.array([3, 7, 15])]
        assert first == f"{100 * float(holds[0]):.0f}"
        assert saved == [f"{float(value):.1f}" for value in expected]


def table_rows(text):
    return {
        tuple(cell.strip() for cell in line.strip("|").split("|"))
        for line in text.splitlines()
        if line.startswith("|")
    }


def test_speeds_of_tuning_are_those_of_the_readme():
    tuning = (ROOT / "docs/tuning.md").read_text()
    (part,) = re.findall(r"^## By batch.*?^## ", tuning, re.DOTALL | re.MULTILINE)
    readme = (ROOT / "README.md").read_text()
    readme = readme.replace(", which no draft foretells", "")
    assert table_rows(part) <= table_rows(readme)


def test_figures_of_tuning_stand_where_they_link_to():
    tuning = (ROOT / "docs/tuning.md").read_text()
    (part,) = re.findall(r"^## By kind of text.*?^## ", tuning, re.DOTALL | re.MULTILINE)
    rows = [row for row in table_rows(part) if "](" in row[2]]
    assert len(rows) == 8
    for row in rows:
        (page,) = re.findall(r"\]\(([a-z_]+\.md)", row[2])
        figures = set(re.findall(r"\d+\.\d+", (ROOT / "docs" / page).read_text()))
        assert figures >= set(re.findall(r"\d+\.\d+", row[1])), row
