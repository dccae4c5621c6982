"""Each clause of the model contract has a probe, which fails on the model that breaks it alone."""

import dataclasses
import functools

import attention_model
import jax
import jax.numpy as jnp
import pytest
import toy_model

import jax_sa

PARAMS = attention_model.init_params()
REQUIRED = ["shapes", "memory", "offset", "order", "width", "special"]
REQUIRED += ["refused", "alone", "rows", "late", "room"]
CAPACITY = 24


@pytest.fixture(autouse=True)
def exact():
    """A GPU would otherwise round the products of float32."""
    with jax.default_matmul_precision("highest"):
        yield


@functools.cache
def check(fault, init_cache=attention_model.init_cache, **options):
    model = attention_model.make(fault)
    return jax_sa.check_model(model, PARAMS, init_cache, capacity=CAPACITY, **options)


@pytest.mark.parametrize("rows", [2, 5])
def test_a_good_model_passes_all(rows):
    report = check(None, rows=rows)
    assert [clause.outcome for clause in report.clauses] == ["ok"] * 13, str(report)
    assert report.ok


@pytest.mark.parametrize(
    "fault", [*(name for name in REQUIRED if name != "refused"), "refused: count", "refused: stale"]
)
def test_a_model_that_breaks_a_clause_breaks_no_other(fault):
    ring = fault == "late"
    report = check(fault, attention_model.init_ring if ring else attention_model.init_cache)
    assert [clause.name for clause in report.broken] == [fault.partition(":")[0]], str(report)
    assert not report.ok and len(report.broken[0].finding) > 80


@pytest.mark.parametrize("fault", ["beyond", "length"])
def test_what_the_decoder_does_not_mind_is_a_note(fault):
    report = check(fault)
    notes = [clause.name for clause in report.clauses if clause.outcome == "note"]
    assert report.ok and notes == [fault], str(report)


def test_a_ring_that_is_large_enough_passes():
    report = jax_sa.check_model(
        attention_model.make("late"), PARAMS, attention_model.init_cache, capacity=CAPACITY
    )
    assert report.ok


def test_models_of_rounded_numbers_pass():
    def model(params, tokens, cache):
        cache = dataclasses.replace(cache, keys=cache.keys.astype(jnp.float32))
        logits, cache = attention_model.make()(params, tokens, cache)
        keys = cache.keys.astype(jnp.bfloat16)
        return logits.astype(jnp.bfloat16), dataclasses.replace(cache, keys=keys)

    def init_cache(rows, capacity):
        cache = attention_model.init_cache(rows, capacity)
        return dataclasses.replace(cache, keys=cache.keys.astype(jnp.bfloat16))

    assert jax_sa.check_model(model, PARAMS, init_cache, capacity=CAPACITY).ok


def test_the_toy_model_passes():
    params = jnp.asarray(toy_model.TABLE)
    report = jax_sa.check_model(toy_model.model, params, toy_model.init_cache, rows=4)
    assert report.ok, str(report)


def test_the_table_fits_a_terminal():
    text = str(check("rows", attention_model.init_cache))
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "rows    broken       each row has its own position" in text


def test_generate_checks():
    def run(fault, new=12, rows=2):
        prompts = jnp.ones((rows, 6), jnp.int32)
        return jax_sa.generate(
            attention_model.make(fault),
            PARAMS,
            prompts,
            None,
            attention_model.init_cache(rows, 6 + new),
            max_new_tokens=new,
            check=True,
        )

    assert run(None).lengths.tolist() == [12, 12]
    assert run(None, rows=1).lengths.tolist() == [12]
    with pytest.raises(ValueError, match="(?s)contract of jax_sa.Decoder.*rows +broken.*one index"):
        run("rows")
    with pytest.raises(ValueError, match="check: prompt and new tokens: expected an int in"):
        run(None, new=2)
    with pytest.raises(ValueError, match="check: expected arrays, got tracers"):
        jax.jit(lambda: run(None))()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": 1}, "rows: expected an int in"),
        ({"capacity": 8}, "capacity: expected an int in"),
        ({"special_tokens": (-1,)}, "special_tokens: expected an int in"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        jax_sa.check_model(attention_model.make(), PARAMS, attention_model.init_cache, **arguments)
