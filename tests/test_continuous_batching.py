"""The example that serves requests as they come and go, and the paged cache that it serves from."""

import dataclasses
import json
import sys

import copies
import jax
import jax.numpy as jnp
import llama_families as families
import numpy as np
import pytest
import texts

# isort: split
import continuous_batching as example
from llama import model, paged

import jax_sa

CLOSE = {"atol": 2e-5, "rtol": 2e-5}
ROWS, TEXT = families.TOKENS.shape
PAGE_SIZE, NUM_PAGES = 8, 40
TINY = families.FAMILIES["llama3"]
STOPPING = dataclasses.replace(TINY, eos_tokens=(4, 46))  # tokens that it writes, if rarely
WIDTHS = [(1, 30), (0, 17), (44, 1), (3, 0), (1, 1), (47, 47)]  # of each row, step by step
PADDED = 100
SCRAMBLED = np.random.RandomState(1).permutation(NUM_PAGES).astype(np.int32)

apply_paged = jax.jit(paged.apply, static_argnums=0)
apply_dense = jax.jit(model.apply, static_argnums=0)


@pytest.fixture(autouse=True)
def exact():
    """As the command does: a GPU would otherwise round the products of float32."""
    with jax.default_matmul_precision("highest"):
        yield


def used_cache(settings):
    """Pages that hold what others left there."""
    empty = paged.init_cache(settings, NUM_PAGES, PAGE_SIZE, jnp.float32)
    leaves, structure = jax.tree.flatten(empty)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    left = [jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, left)


def page_table():
    """Of three rows, the last without a page; a page's place says nothing about its row."""
    pages = TEXT // PAGE_SIZE
    table = np.full((ROWS + 1, pages + 1), NUM_PAGES, np.int32)
    table[:ROWS, :pages] = SCRAMBLED[: ROWS * pages].reshape(ROWS, pages)
    return table


def flat_block(starts, widths, size):
    """Tokens, positions and rows of a padded block in which row r reads `widths[r]` tokens."""
    places = [
        (families.TOKENS[row, start + i], start + i, row)
        for row, (start, width) in enumerate(zip(starts, widths, strict=True))
        for i in range(width)
    ]
    places += [(60, 0, ROWS + 1)] * (size - len(places))
    return [jnp.asarray(column, jnp.int32) for column in zip(*places, strict=True)]


def read_in_blocks(settings, params, cache, size):
    """The logits [B, N, V] of both texts, read in padded blocks of `WIDTHS`, and the cache."""
    logits = np.full((ROWS, TEXT, settings.vocab_size), np.nan, np.float32)
    starts = np.zeros(ROWS, int)
    for widths in WIDTHS:
        tokens, positions, row_ids = flat_block(starts, widths, size)
        x, cache = apply_paged(settings, params, tokens, positions, row_ids, page_table(), cache)
        count = sum(widths)
        logits[row_ids[:count], positions[:count]] = model.unembed(params, x[None])[0, :count]
        starts += widths
    assert starts.tolist() == [TEXT, TEXT]
    return logits, cache


@pytest.mark.parametrize("family", families.FAMILIES)
def test_logits_of_ragged_blocks_equal_the_dense_ones(family):
    settings = families.FAMILIES[family]
    params = families.random_params(settings)
    got, _ = read_in_blocks(settings, params, used_cache(settings), PADDED)
    dense = model.init_cache(settings, ROWS, TEXT, jnp.float32, mtp=False)
    expected, _ = apply_dense(settings, params, jnp.asarray(families.TOKENS), dense)
    np.testing.assert_allclose(got, expected, **CLOSE)


def test_padding_changes_nothing():
    params = families.random_params(TINY)
    plain, plain_cache = read_in_blocks(TINY, params, used_cache(TINY), size=0)
    padded, padded_cache = read_in_blocks(TINY, params, used_cache(TINY), PADDED)
    np.testing.assert_allclose(padded, plain, **CLOSE)
    others = np.setdiff1d(np.arange(NUM_PAGES), page_table())
    assert len(others) == NUM_PAGES - ROWS * TEXT // PAGE_SIZE
    caches = map(jax.tree.leaves, (used_cache(TINY), plain_cache, padded_cache))
    for before, without, with_padding in zip(*caches, strict=True):
        np.testing.assert_allclose(with_padding, without, **CLOSE)
        np.testing.assert_array_equal(with_padding[others], before[others])


def test_tokens_without_a_page_are_dropped():
    """Of a row without pages, at the end of the last page, and far beyond the page table."""
    row_ids = jnp.asarray([ROWS, ROWS, 0, 1, 1], jnp.int32)
    positions = jnp.asarray([0, 9, TEXT, TEXT + PAGE_SIZE, 10**6], jnp.int32)
    params, before = families.random_params(TINY), used_cache(TINY)
    tokens = jnp.full(5, 7, jnp.int32)
    _, after = apply_paged(TINY, params, tokens, positions, row_ids, page_table(), before)
    jax.tree.map(np.testing.assert_array_equal, after, before)


def new_engine(slots=3, pages=16, max_draft=4, settings=TINY):
    options = jax_sa.SAConfig(96, slots, max_draft=max_draft)
    return example.Engine(settings, families.random_params(settings), options, pages)


def new_requests(count=9):
    """Each 1 to 96 tokens with its answer; the prompts repeat themselves."""
    random = np.random.default_rng(0)
    return [
        example.Request(
            name=f"request {i}",
            arrival=3 * i,
            prompt=texts.random_text(4, int(random.integers(1, 61)), seed=i),
            max_new_tokens=int(random.integers(1, 37)),
        )
        for i in range(count)
    ]


@pytest.mark.parametrize(
    ("slots", "pages", "max_draft"), [(1, 6, 4), (3, 16, 1), (4, 24, 4), (12, 60, 9)]
)
def test_answers_are_those_of_plain_decoding(slots, pages, max_draft):
    engine, requests, lines = new_engine(slots, pages, max_draft, STOPPING), new_requests(), []
    example.serve(engine, requests, lines.append)
    plain = example.plain_answers(STOPPING, engine.params, requests)
    assert [request.answer for request in requests] == plain
    assert sum("starts" in line for line in lines) == len(requests)
    assert sum("ends" in line for line in lines) == len(requests)
    stopped = [len(request.answer) < request.max_new_tokens for request in requests]
    assert any(stopped) and not all(stopped)
    # Every page is free again, and is so once.
    assert sorted(engine.free_pages) == list(range(pages))


def test_company_costs_no_request_a_step():
    """Everyone has the drafts of its own text, wherever in the batch it is."""
    alone, together = new_requests(), new_requests()
    example.serve(new_engine(1, 6, 4, STOPPING), alone, lambda line: None)
    example.serve(new_engine(4, 24, 4, STOPPING), together, lambda line: None)
    assert [request.steps for request in together] == [request.steps for request in alone]
    assert sum(request.steps for request in alone) < sum(len(r.answer) for r in alone)


def test_an_answer_ends_within_a_draft():
    """After a text that repeats one token, which is the first time drafted and then a stop."""
    (request,) = new_requests(5)[4:]
    params = families.random_params(TINY)
    (answer,) = example.plain_answers(TINY, params, [request])
    assert len(set(answer[-10:])) == 1
    stopping = dataclasses.replace(TINY, eos_tokens=(answer[-1],))
    for settings, expected in ((TINY, answer[-5:]), (stopping, answer[-1:])):
        engine = new_engine(settings=settings)
        last = example.Request("last", 0, request.prompt + answer[:-5], max_new_tokens=5)
        steps = example.serve(engine, [last], lambda line: None)
        assert steps == -(-len(last.prompt) // example.CHUNK)
        assert last.answer == expected and last.steps == 1


def test_a_request_is_cached_up_to_where_it_has_read():
    """Its drafts do not reach into a prompt that is still to be read, nor beyond its last token."""
    engine = new_engine()
    request = example.Request("long", 0, texts.periodic_text(5, 40), max_new_tokens=3)
    engine.add(request)

    def cached():
        text = engine.cache.keys[0][np.array(request.pages)].reshape(len(request.pages) * 16, -1)
        return np.flatnonzero(np.asarray(text).any(axis=1)).tolist()

    engine.step()
    assert engine.draft.length[0] == 4
    assert cached() == list(range(example.CHUNK)) and request.answer == []
    engine.step()
    assert cached() == list(range(40 + 3 - 1))


def test_requests_share_no_page_and_wait_until_there_are_enough(monkeypatch):
    engine, most = new_engine(slots=9, pages=8), 0
    step = engine.step

    def checked_step():
        nonlocal most
        held = [page for request in engine.running for page in request.pages]
        assert sorted(held + engine.free_pages) == list(range(8))
        most = max(most, len(engine.running))
        return step()

    monkeypatch.setattr(engine, "step", checked_step)
    lines = []
    example.serve(engine, new_requests(), lines.append)
    assert 1 < most < 9
    assert any(line.endswith("waits for pages") for line in lines)


def test_one_program_serves_every_batch_in_one_place():
    engine = new_engine(pages=17)

    def addresses():
        leaves = jax.tree.leaves((engine.buffers, engine.cache))
        return [leaf.unsafe_buffer_pointer() for leaf in leaves]

    before, compiled = addresses(), example.decode_step._cache_size()
    example.serve(engine, new_requests(), lambda line: None)
    assert example.decode_step._cache_size() == compiled + 1
    assert addresses() == before


def serve_two_after(left_behind):
    """Answers and pages of two requests after some steps, and where no text of theirs is."""
    engine, requests = new_engine(), new_requests(2)
    for request in requests:
        engine.add(request)
    for leaf in jax.tree.leaves(engine.batch):
        leaf[2:] = left_behind
    for _ in range(4):
        engine.step()
    held = [page for request in requests for page in request.pages]
    others = [leaf[np.setdiff1d(np.arange(16), held)] for leaf in jax.tree.leaves(engine.cache)]
    return [request.answer for request in requests], jax.tree.map(np.array, engine.cache), others


@pytest.mark.parametrize("left_behind", [1, 7, -5, 2**31 - 1])
def test_rows_beyond_the_batch_do_not_matter(left_behind):
    answers, cache, others = serve_two_after(0)
    assert all(answers) and not any(map(np.any, others))
    jax.tree.map(np.testing.assert_array_equal, serve_two_after(left_behind)[:2], (answers, cache))


def test_the_pages_are_updated_in_place():
    engine = new_engine(slots=2, pages=4096)
    engine.add(new_requests(1)[0])
    compiled = example.decode_step.lower(
        TINY,
        engine.params,
        engine.buffers,
        engine.batch,
        np.int32(1),
        engine.draft,
        engine.cache,
    ).compile()
    leaves = jax.tree.leaves(engine.cache)
    room = sum(leaf.nbytes for leaf in leaves) // 8
    smallest = min(leaf.nbytes for leaf in leaves)
    copies.assert_in_place(compiled, engine.cache, smallest=smallest, room=room)


@pytest.fixture
def tokenizers():
    pytest.importorskip(
        "tokenizers", reason="tokenizers is not installed; pip install jax_sa[tokenizer]"
    )


@pytest.mark.usefixtures("tokenizers")
@pytest.mark.parametrize(
    "options",
    [["--slots", "1"], ["--slots", "6", "--pages", "60"], ["--max-draft", "3", "--pages", "12"]],
    ids=" ".join,
)
def test_the_command(capsys, options):
    """It fails by itself if an answer is wrong."""
    assert example.main([*options, "--max-new-tokens", "40", "--json"]) == 0
    out, log = capsys.readouterr()
    report = json.loads(out)
    names = [name for _, name, _ in example.ARRIVALS]
    assert [figures["request"] for figures in report["requests"]] == names
    for name in names:
        assert log.count(f": {name} starts") == log.count(f": {name} ends") == 1
    assert ("waits for pages" in log) == ("12" in options)
    assert ("waits for a slot" in log) == ("1" in options)
    tokens, steps = (sum(r[key] for r in report["requests"]) for key in ("tokens", "steps"))
    assert report["wrong"] == [] and 0 < steps < tokens


@pytest.mark.usefixtures("tokenizers")
def test_a_wrong_answer_is_one_line_and_status_1(capsys, monkeypatch):
    right = example.plain_answers

    def wrong(config, params, requests):
        answers = right(config, params, requests)
        answers[1][-1] += 1
        return answers

    monkeypatch.setattr(example, "plain_answers", wrong)
    assert example.main(["--max-new-tokens", "4"]) == 1
    out, error = capsys.readouterr()
    assert error == "error: not what plain decoding writes: prose\n"
    assert "tokens per step" in out and "ends after" in out


@pytest.mark.usefixtures("tokenizers")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--slots", "0"], "--slots: expected an int in [1, "),
        (["--slots", "1000"], "--slots: expected an int in [1, "),
        (["--max-draft", "0"], "--max-draft: expected an int in [1, "),
        (["--max-new-tokens", "0"], "--max-new-tokens: expected an int in [1, "),
        (["--max-new-tokens", "5000"], "--max-new-tokens: expected an int in [1, "),
        (["--pages", "2"], "--pages: expected an int in ["),
    ],
)
def test_bad_options_are_one_line(capsys, options, message):
    assert example.main(options) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.startswith(f"error: {message}") and error.count("\n") == 1


def test_a_missing_tokenizers_package_is_one_line(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert example.main([]) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.startswith("error: the tokenizers package is missing: pip install")


def test_help(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [example.__file__])
    with pytest.raises(SystemExit) as stop:
        example.main(["--help"])
    assert stop.value.code == 0 and "--max-new-tokens" in capsys.readouterr().out
