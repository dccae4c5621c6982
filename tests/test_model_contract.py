"""What models, caches and prompts decoders take, and what they say of others."""

import dataclasses
import functools
import warnings

import attention_model
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_model
from test_decoder import assert_greedy, random_prompts

import jax_sa

PARAMS = jnp.asarray(toy_model.TABLE)
ATTENTION = attention_model.init_params()


@pytest.fixture(autouse=True)
def exact():
    """A GPU would otherwise round the products of float32."""
    with jax.default_matmul_precision("highest"):
        yield


def shifting_model(params, tokens, cache):
    """The toy model on a cache that, like many, moves a write beyond its end back inside."""
    room = cache.tokens.shape[1] - tokens.shape[1]
    start = jnp.minimum(cache.length, room)
    text = jax.vmap(lambda row, new, at: jax.lax.dynamic_update_slice(row, new, (at,)))(
        cache.tokens, tokens, start
    )
    logits, _ = toy_model.model(params, tokens, dataclasses.replace(cache, tokens=text))
    return logits, dataclasses.replace(cache, tokens=text)


@pytest.mark.parametrize(
    ("new", "sampled"),
    [
        *[(1, False), (2, True), (9, True), (30, False)],
        *[pytest.param(*case, marks=pytest.mark.slow) for case in ((1, True), (2, False))],
        *[pytest.param(*case, marks=pytest.mark.slow) for case in ((9, False), (30, True))],
    ],
)
def test_exactly_prompt_and_new_tokens_are_room_enough(new, sampled):
    """Rows come to their ends at different steps, some long before the others."""
    prompts, lengths = random_prompts(4, [20, 20, 5, 20], 20)
    limits = jnp.asarray([new, min(new, 3), new, max(new - 4, 0)], jnp.int32)
    sampling = jax_sa.Sampling(jax.random.key(0), temperature=0.0) if sampled else None
    drafted = jax_sa.generate(
        shifting_model,
        PARAMS,
        prompts,
        lengths,
        toy_model.init_cache(4, 20 + new),
        max_new_tokens=new,
        limits=limits,
        state=jax_sa.init(4, 64),
        draft_widths=(2, 16),
        costs=jnp.ones(3),
        sampling=sampling,
    )
    assert_greedy(drafted, prompts, lengths, limits.tolist())
    text = np.asarray(drafted.cache.tokens)
    for row, (length, limit) in enumerate(zip(lengths.tolist(), limits.tolist(), strict=True)):
        said = toy_model.greedy(prompts[row, :length].tolist(), limit)
        kept = [*prompts[row, :length].tolist(), *said][: length + limit - 1]
        assert text[row, : len(kept)].tolist() == kept


def test_the_length_that_a_model_returns_does_not_count():
    def advancing(params, tokens, cache):
        logits, cache = toy_model.model(params, tokens, cache)
        return logits, dataclasses.replace(cache, length=cache.length + tokens.shape[1])

    prompts, lengths = random_prompts(5, [9, 14])
    cache, state = toy_model.init_cache(2, 64), jax_sa.init(2, 64)
    done = jax_sa.generate(
        advancing, PARAMS, prompts, lengths, cache, max_new_tokens=30, state=state, max_draft=2
    )
    assert_greedy(done, prompts, lengths, [30, 30])


def run(model=toy_model.model, cache=None, rows=2, **options):
    prompts, lengths = random_prompts(3, [7] * rows)
    cache = toy_model.init_cache(rows, 32) if cache is None else cache
    options = {"max_new_tokens": 8, "state": jax_sa.init(rows, 64)} | options
    return jax_sa.generate(model, PARAMS, prompts, lengths, cache, **options)


def test_logits_of_the_last_token_alone():
    def last_alone(params, tokens, cache):
        logits, cache = toy_model.model(params, tokens, cache)
        return logits[:, -1], cache

    message = r"logits: .*\[B, T, V\] = \[2, 1, V\].*not of the last alone, got float32\[2, 11\]"
    with pytest.raises(ValueError, match=message):
        run(last_alone)


def test_caches_that_come_back_as_others():
    def wider(params, tokens, cache):
        logits, cache = toy_model.model(params, tokens, cache)
        return logits, dataclasses.replace(cache, tokens=cache.tokens.astype(jnp.float32))

    def as_dict(params, tokens, cache):
        return toy_model.model(params, tokens, cache)[0], {"length": cache.length}

    message = r"cache\.tokens was int32\[2, 32\] and came back as float32\[2, 32\]"
    with pytest.raises(TypeError, match=message):
        run(wider)
    with pytest.raises(TypeError, match="expected the model to return a Cache.*got dict"):
        run(as_dict)


def test_what_was_donated_is_gone():
    cache = toy_model.init_cache(2, 32)
    done = run(cache=cache, max_draft=1)
    with pytest.raises(ValueError, match=r"cache: cache\.\w+ was donated to an earlier call"):
        run(cache=cache, max_draft=1)
    decoder = jax_sa.Decoder(toy_model.model, max_draft=1)
    decoder.step(PARAMS, done)
    with pytest.raises(ValueError, match=r"generation: generation\.\w+ was donated"):
        decoder.step(PARAMS, done)


def test_an_array_can_be_donated_once():
    cache = toy_model.init_cache(2, 32)
    twice = dataclasses.replace(cache, heard=cache.tokens)
    with pytest.raises(ValueError, match=r"cache: cache\.heard is the same array as cache\.tokens"):
        run(cache=twice)


def test_parameters_that_are_no_pytree():
    class Module:
        pass

    cache = toy_model.init_cache(1, 8)
    with pytest.raises(TypeError, match=r"params: .*got a Module at params\['a'\].*nnx.split"):
        jax_sa.generate(toy_model.model, {"a": Module()}, [[1]], None, cache, max_new_tokens=2)


def test_a_cache_that_says_its_capacity():
    model = jax_sa.from_forward(attention_model.forward, attention_model.init_keys)
    given = model, ATTENTION, [[1, 2, 3]] * 2, [3, 3]
    with pytest.raises(ValueError, match="cache: expected a capacity of at least 7.*got 6"):
        jax_sa.generate(*given, model.init_cache(2, 6), max_new_tokens=4)
    cache = dataclasses.replace(model.init_cache(2, 7), length=jnp.asarray([0, 1], jnp.int32))
    with pytest.raises(ValueError, match="cache: expected a capacity of at least 8.*got 7"):
        jax_sa.generate(*given, cache, max_new_tokens=4)


def one_index(params, tokens, positions, keys):
    """A stack that writes all rows at one place."""
    assert tokens.shape[0] == 1
    return attention_model.forward(params, tokens, positions, keys)


def whole(params, tokens):
    keys = attention_model.init_keys(*tokens.shape)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)
    return attention_model.forward(params, tokens, positions, keys)[0]


ADAPTED = {
    "row": jax_sa.from_forward(attention_model.forward, attention_model.init_keys),
    "batch": jax_sa.from_forward(one_index, attention_model.init_keys, index="batch"),
    "whole pass": jax_sa.from_whole_pass(whole),
}


@pytest.mark.parametrize("kind", ADAPTED)
def test_models_made_of_a_forward_function(kind):
    model = ADAPTED[kind]
    report = jax_sa.check_model(model, ATTENTION, model.init_cache, rows=3, capacity=20)
    assert report.ok, str(report)
    prompts, lengths = jax_sa.pad_prompts([[3, 4, 5, 3, 4], [7, 8, 7, 8, 7, 8, 7], [9]])
    plain, drafted = (
        jax_sa.generate(
            model,
            ATTENTION,
            prompts,
            lengths,
            model.init_cache(3, 16 + 40),
            max_new_tokens=40,
            state=state,
            max_draft=2,
            costs=costs,
        )
        for state, costs in ((None, None), (jax_sa.init(3, 64), jnp.ones(3)))
    )
    assert drafted.to_lists() == plain.to_lists()
    assert int(plain.calls) == 40 and int(drafted.calls) < 40


def test_adapters_of_the_same_functions_are_equal():
    again = jax_sa.from_forward(attention_model.forward, attention_model.init_keys)
    assert again == ADAPTED["row"] and hash(again) == hash(ADAPTED["row"])
    with pytest.raises(ValueError, match="index: expected one of 'row', 'batch', got 'rows'"):
        jax_sa.from_forward(attention_model.forward, attention_model.init_keys, index="rows")
    with pytest.raises(TypeError, match="forward: expected a function, got NoneType"):
        jax_sa.from_whole_pass(None)


def test_pad_prompts():
    prompts, lengths = jax_sa.pad_prompts([[1, 2], np.asarray([3, 4, 5]), (6,)])
    assert prompts.shape == (3, 16) and prompts.dtype == lengths.dtype == jnp.int32
    assert lengths.tolist() == [2, 3, 1]
    assert [row[:n] for row, n in zip(prompts.tolist(), [2, 3, 1], strict=True)] == [
        [1, 2],
        [3, 4, 5],
        [6],
    ]
    assert jax_sa.pad_prompts([[1] * 17])[0].shape == (1, 32)
    assert jax_sa.pad_prompts([[1] * 16])[0].shape == (1, 16)
    assert jax_sa.pad_prompts([[1] * 5], widths=(4, 6, 8))[0].shape == (1, 6)


@pytest.mark.parametrize(
    ("prompts", "widths", "error", "message"),
    [
        ([], None, ValueError, "prompts: expected one at least"),
        ([[1], []], None, ValueError, r"prompts\[1\]: expected one token at least"),
        ([[1.5]], None, TypeError, r"prompts\[0\]: expected a list of token ids, got \[1.5\]"),
        ([1, 2], None, TypeError, r"prompts\[0\]: expected a list of token ids, got 1"),
        ([[2**31]], None, ValueError, r"prompts\[0\]: expected integers that int32 can hold"),
        ([[1, 2, 3]], (2,), ValueError, r"widths: expected one of at least 3.*got \[2\]"),
    ],
)
def test_prompts_that_cannot_be_padded(prompts, widths, error, message):
    with pytest.raises(error, match=message):
        jax_sa.pad_prompts(prompts, widths=widths)


def test_lists_and_larger_integers():
    texts = [[1, 2, 3], [4, 5, 6]]
    given = {
        "lists": (texts, None),
        "lists and lengths": (texts, [3, 3]),
        "int64": (np.asarray(texts), np.asarray([3, 3])),
        "ragged": ([*texts, [7]], None),
    }
    for prompts, lengths in given.values():
        rows = len(prompts)
        done = jax_sa.generate(
            toy_model.model,
            PARAMS,
            prompts,
            lengths,
            toy_model.init_cache(rows, 32),
            max_new_tokens=5,
            limits=[5] * rows,
        )
        assert done.to_lists() == [toy_model.greedy(text, 5) for text in prompts]


def test_padding_on_the_left_is_warned_of():
    left = jnp.asarray([[0, 0, 0, 5, 6, 7], [1, 2, 3, 4, 5, 6]], jnp.int32)
    right = left[:, ::-1]
    lengths = jnp.asarray([3, 6], jnp.int32)
    options = {"max_new_tokens": 2}
    with pytest.warns(UserWarning, match="prompts: expected padding on the right.*token 0"):
        jax_sa.generate(
            toy_model.model, PARAMS, left, lengths, toy_model.init_cache(2, 32), **options
        )
    jax_sa.generate(toy_model.model, PARAMS, right, lengths, toy_model.init_cache(2, 32), **options)


def forbid_three(logits, block, generation):
    return logits.at[..., 3].set(-jnp.inf)


def forbid_repeats(logits, block, generation):
    """No token that the answer holds already comes again, the draft before a place included."""
    assert generation.cache is None
    vocabulary = jnp.arange(logits.shape[-1])[None, None]
    place = jnp.arange(generation.tokens.shape[1], dtype=jnp.int32)[None]
    counts = place < generation.lengths[:, None]
    said = jnp.any((generation.tokens[..., None] == vocabulary) & counts[..., None], axis=1)
    is_draft = jnp.arange(block.shape[1])[None, :, None] > 0
    drafted = jax.lax.cummax(
        ((block[..., None] == vocabulary) & is_draft).astype(jnp.int32), axis=1
    )
    return jnp.where(said[:, None] | (drafted > 0), -1.0, logits)


def plain_without_repeats(prompt, count):
    text, said = list(prompt), []
    for _ in range(count):
        best = toy_model.greedy(text, 1)[0]
        if best in said:  # all others have the same logit, so the first that is left
            best = next(token for token in range(11) if token not in said)
        said.append(best)
        text.append(best)
    return said


@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
def test_logits_that_are_adjusted(sampled):
    prompts, lengths = random_prompts(8, [20, 9, 14])
    sampling = jax_sa.Sampling(jax.random.key(0), temperature=0.0) if sampled else None
    options = {"sampling": sampling, "max_draft": 3, "costs": jnp.ones(4)}

    def generate(logits_fn, count, state):
        return jax_sa.generate(
            toy_model.model,
            PARAMS,
            prompts,
            lengths,
            toy_model.init_cache(3, 20 + count),
            max_new_tokens=count,
            state=state,
            logits_fn=logits_fn,
            **({"sampling": sampling} if state is None else options),
        )

    plain = generate(forbid_three, 40, None)
    drafted = generate(forbid_three, 40, jax_sa.init(3, 64))
    assert drafted.to_lists() == plain.to_lists()
    assert drafted.accepted.any() and not (plain.tokens == 3).any()
    once = generate(forbid_repeats, 9, jax_sa.init(3, 64))
    texts = [prompts[row, :n].tolist() for row, n in enumerate(lengths.tolist())]
    assert once.to_lists() == [plain_without_repeats(text, 9) for text in texts]


def test_draft_widths():
    decoder = jax_sa.Decoder(toy_model.model, max_draft=8, draft_widths=(8, 3))
    assert decoder.widths() == (0, 3, 8) and decoder.widths(drafts=False) == (0,)
    prompts, lengths = random_prompts(1, [40, 35, 30])
    cache, state = toy_model.init_cache(3, 100), jax_sa.init(3, 100)
    done = decoder.generate(
        PARAMS, prompts, lengths, cache, max_new_tokens=60, state=state, costs=jnp.ones(3)
    )
    assert_greedy(done, prompts, lengths, [60] * 3)
    assert done.accepted.any()


def test_one_more_prompt_column_compiles_nothing():
    traced = []

    def counting(params, tokens, cache):
        traced.append(tokens.shape)
        return toy_model.model(params, tokens, cache)

    def generate(longest):
        prompts, lengths = jax_sa.pad_prompts([[1] * longest, [2]])
        cache, state = toy_model.init_cache(2, 64), jax_sa.init(2, 64)
        jax_sa.generate(
            counting, PARAMS, prompts, lengths, cache, max_new_tokens=8, state=state, max_draft=2
        )
        return len(traced)

    assert generate(9) == generate(10) == generate(16)


def test_a_function_written_anew_is_warned_of():
    def model(params, tokens, cache, extra):
        return toy_model.model(params, tokens, cache)

    def decode(function):
        cache = toy_model.init_cache(1, 32)
        jax_sa.generate(function, PARAMS, [[1, 2]], None, cache, max_new_tokens=2)

    extra = object()
    warned = pytest.warns(UserWarning, match="model: expected the same function object.*compiled")
    decode(functools.partial(model, extra=extra))
    with warned:
        decode(functools.partial(model, extra=extra))
    decode(functools.partial(model, extra=object()))  # another value: another function
    with warned:
        for _ in range(2):
            decode(lambda *arguments: toy_model.model(*arguments))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for value in (1, 2):
            decode(lambda *arguments, value=value: toy_model.model(*arguments))
