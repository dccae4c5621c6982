"""The packed contract: each clause has a probe, which fails on the model that breaks it alone."""

import jax
import jax.numpy as jnp
import packed_attention
import packed_model
import pytest
import toy_model

import jax_sa

PARAMS = packed_attention.init_params()
CLAUSES = ["shapes", "memory", "offset", "order", "width", "special", "refused", "alone", "rows"]
CLAUSES += ["late", "room", "layout", "padding", "tree", "move"]
CAPACITY = 24


@pytest.fixture(autouse=True)
def exact():
    """A GPU would otherwise round the products of float32."""
    with jax.default_matmul_precision("highest"):
        yield


def check(model, init_cache=packed_attention.init_cache, **options):
    options = {"capacity": CAPACITY, "packed": True, "trees": True} | options
    return jax_sa.check_model(model, PARAMS, init_cache, **options)


@pytest.mark.parametrize(("rows", "lazy"), [(2, False), (5, True)])
def test_a_good_model_passes_all(rows, lazy):
    report = check(packed_attention.make(lazy=lazy), rows=rows)
    assert [(clause.name, clause.outcome) for clause in report.clauses] == [
        (name, "ok") for name in CLAUSES
    ], str(report)


def test_trees_are_checked_where_they_are_asked_for():
    report = check(packed_attention.make(), trees=False)
    assert [clause.name for clause in report.clauses] == CLAUSES[:-2]


FAULTS = [name for name in CLAUSES if name not in ("refused", "room")]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_model_that_breaks_a_clause_breaks_no_other(fault):
    caches = {"late": packed_attention.init_ring, "move": packed_attention.init_staying}
    report = check(packed_attention.make(fault), caches.get(fault, packed_attention.init_cache))
    assert [clause.name for clause in report.broken] == [fault], str(report)
    assert len(report.broken[0].finding) > 80
    assert "cache.length" not in str(report)
    assert all(len(line) <= 80 for line in str(report).splitlines())


def test_logits_of_other_places_break_the_layout():
    report = check(packed_attention.make("places", lazy=True))
    assert [clause.name for clause in report.broken] == ["layout"], str(report)


def test_a_model_without_trees_says_so():
    def model(params, tokens, rows, positions, cache):
        return packed_attention.make()(params, tokens, rows, positions, cache)

    report = check(model)
    assert [clause.name for clause in report.broken] == ["tree"], str(report)
    assert "does not take a tree as its last argument" in report.broken[0].finding


@pytest.mark.parametrize("cache", ["rows", "pages"])
def test_the_toy_model_passes(cache):
    def init_cache(rows, capacity):
        if cache == "rows":
            return packed_model.row_cache(rows, capacity)
        blocks = -(-capacity // 4)
        return packed_model.paged_cache(rows, rows * blocks, 4, blocks)

    params = jnp.asarray(toy_model.TABLE)
    options = {"rows": 4, "packed": True, "trees": True}
    report = jax_sa.check_model(packed_model.model, params, init_cache, **options)
    assert report.ok, str(report)


def test_too_few_pages_are_an_error():
    def init_cache(rows, capacity):
        return packed_model.paged_cache(rows, 7, 4, 6)

    message = "cache.block_table: expected pages for 24 tokens in 2 rows"
    with pytest.raises(ValueError, match=message):
        check(packed_model.model, init_cache)


def test_generate_checks():
    def run(fault, rows=2, new=12, drafts=False, **options):
        options = {"max_draft": 2, "budget": 3 * rows} | options
        return jax_sa.PackedDecoder(packed_attention.make(fault), **options).generate(
            PARAMS,
            jnp.ones((3, 6), jnp.int32),
            jnp.full(3, 6, jnp.int32),
            packed_attention.init_cache(rows, 6 + new),
            rows=rows,
            max_new_tokens=new,
            state=jax_sa.init(rows, 6 + new) if drafts else None,
            check=True,
        )

    assert run(None, drafts=True).lengths.tolist() == [12] * 3
    assert run(None, rows=1).lengths.tolist() == [12] * 3
    assert run("tree").lengths.tolist() == [12] * 3
    with pytest.raises(ValueError, match="(?s)contract of jax_sa.PackedDecoder.*tree +broken"):
        run("tree", drafts=True, tree_nodes=4)
    with pytest.raises(ValueError, match="(?s)contract of jax_sa.PackedDecoder.*padding +broken"):
        run("padding")
    with pytest.raises(ValueError, match="check: tokens of each row: expected an int in"):
        run(None, new=2)
    with pytest.raises(ValueError, match="check: expected arrays, got tracers"):
        jax.jit(lambda: run(None))()


def test_generate_checks_with_the_pages_there_are():
    params = jnp.asarray(toy_model.TABLE)
    prompts, lengths = packed_model.make_prompts(3, 8)

    def run(pages):
        return jax_sa.PackedDecoder(packed_model.model, budget=16).generate(
            *(params, prompts, lengths, packed_model.paged_cache(2, pages, 4, 8)),
            rows=2,
            max_new_tokens=16,
            check=True,
        )

    done = run(8)
    assert done.finished.all() and done.cache.block_table.num_unclaimed == 8
    with pytest.raises(ValueError, match="check: tokens of each row: .* got 12"):
        run(7)
