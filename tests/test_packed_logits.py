"""`PackedDecoder.logits_fn`: logits of a flat block are changed, each for its row."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import packed_model
import pytest
from packed_model import all_greedy, greedy
from test_packed_decoder import ALL, CAPACITY, LENGTHS, PROMPTS, G, N, decode
from toy_model import VOCABULARY

import jax_sa

# Few blocks, each of which takes time to compile.
DECODER = jax_sa.PackedDecoder(packed_model.model, budget=12)
FORCED = jnp.ones(len(DECODER.widths(3)), jnp.float32)
FORBIDDEN = np.random.default_rng(0).random((N, VOCABULARY)) < 0.3
NEW = 7
"""New tokens of texts without repeats."""


def forbid(logits, tokens, rows, positions, requests):
    """Each prompt forbids tokens of its own."""
    prompt = requests.request.at[rows].get(mode="clip")
    return jnp.where(jnp.asarray(FORBIDDEN)[prompt], -jnp.inf, logits)


def forbid_repeats(logits, tokens, rows, positions, requests):
    """No new token comes twice in an answer, be it written or drafted before."""
    lengths = requests.prompt_lengths
    written = jax_sa.read_tokens(requests.state, lengths, length=NEW)
    counts = jnp.arange(NEW)[None] < (requests.state.length - lengths)[:, None]
    said = jnp.any((jax.nn.one_hot(written, VOCABULARY) > 0) & counts[..., None], axis=1)
    said = said.at[rows].get(mode="clip")
    place = jnp.arange(rows.size)
    is_new = positions >= lengths.at[rows].get(mode="clip")
    before = (rows[None] == rows[:, None]) & (place[None] <= place[:, None]) & is_new[None]
    drafted = before.astype(jnp.int32) @ jax.nn.one_hot(tokens, VOCABULARY, dtype=jnp.int32)
    return jnp.where(said | (drafted > 0), -jnp.inf, logits)


def plain(prompt, count, allowed):
    """Greedy decoding; of forbidden tokens' place the first that is allowed takes it."""
    text = list(prompt)
    for _ in range(count):
        best = greedy(text, 1)[0]
        new = text[len(prompt) :]
        text.append(
            best
            if allowed(best, new)
            else min(filter(lambda t: allowed(t, new), range(VOCABULARY)))
        )
    return text[len(prompt) :]


def expected(count, allowed):
    """The answers to all prompts; `allowed(i, token, new)` for prompt i."""
    return [
        plain(prompt[:length], count, functools.partial(allowed, i))
        for i, (prompt, length) in enumerate(zip(PROMPTS.tolist(), LENGTHS.tolist(), strict=True))
    ]


def choices():
    """All choices of sampling, drafts and model; of any two of these all are in a faster run."""
    models = {"model": packed_model.model, "lazy_model": packed_model.lazy_model}
    for sampling, drafts, name in itertools.product(
        ("greedy", "sampled"), ("none", "chosen", "all"), models
    ):
        odd = (sampling == "sampled") ^ (drafts == "none") ^ (name == "model")
        marks = pytest.mark.slow if odd else ()
        case = sampling == "sampled", drafts, models[name]
        yield pytest.param(*case, id=f"{sampling}-{drafts}-{name}", marks=marks)


@pytest.mark.parametrize(("sampled", "drafts", "model"), [*choices()])
def test_each_prompt_forbids_its_tokens(model, drafts, sampled):
    decoder = dataclasses.replace(DECODER, model=model, logits_fn=forbid)
    done = decode(
        decoder,
        state=None if drafts == "none" else jax_sa.init(3, CAPACITY),
        costs=FORCED if drafts == "all" else None,
        sampling=jax_sa.Sampling(jax.random.key(0), temperature=0.0) if sampled else None,
    )
    answers = done.to_lists()
    assert answers == expected(G, lambda i, token, new: not FORBIDDEN[i, token])
    assert answers != all_greedy(PROMPTS, LENGTHS, ALL)
    assert bool(done.accepted.any()) == (drafts != "none")


@pytest.mark.parametrize("model", [packed_model.model, packed_model.lazy_model])
def test_no_token_comes_twice(model):
    """It depends on what was written, and on the draft before each place."""
    decoder = dataclasses.replace(DECODER, model=model, logits_fn=forbid_repeats)
    done = decode(decoder, limits=jnp.full_like(ALL, NEW), costs=FORCED)
    assert done.to_lists() == expected(NEW, lambda i, token, new: token not in new)
    assert done.accepted.any()


@pytest.mark.parametrize("model", [packed_model.model, packed_model.lazy_model])
def test_places_of_no_row_say_so(model):
    """A row's places are consecutive and ascend; the others belong to row B."""
    seen = []

    def look(logits, tokens, rows, positions, requests):
        jax.debug.callback(lambda *arrays: seen.append(arrays), rows, positions)
        assert requests.cache is None
        return logits

    decode(dataclasses.replace(DECODER, model=model, logits_fn=look), costs=FORCED)
    jax.effects_barrier()
    assert len(seen) > 5
    for rows, positions in (tuple(map(np.asarray, arrays)) for arrays in seen):
        judged = rows[: np.argmax(rows == 3)] if (rows == 3).any() else rows
        assert (np.diff(rows) >= 0).all() and (rows[judged.size :] == 3).all()
        for row in range(3):
            assert (np.diff(positions[rows == row]) == 1).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"logits_fn": 1}, TypeError, "logits_fn: expected a function, got int"),
        ({"logits_fn": forbid, "tree_nodes": 4}, ValueError, "logits_fn: expected none with tree"),
    ],
)
def test_errors(options, error, message):
    with pytest.raises(error, match=message):
        dataclasses.replace(DECODER, **options)


def test_a_result_of_another_shape_is_an_error():
    def last(logits, tokens, rows, positions, requests):
        return logits[-1:]

    with pytest.raises(ValueError, match=r"logits_fn's result: expected float32\[\d+, 11\], got"):
        decode(dataclasses.replace(DECODER, logits_fn=last))
