"""The example's model: equal to `transformers`, exact through its cache, clear about bad files."""

import dataclasses
import functools
import json
import re
import shutil

import copies
import jax
import jax.numpy as jnp
import llama_families as families
import numpy as np
import pytest

import jax_sa
from jax_sa.llama import checkpoint, config, drafter, model, mtp, paged, weights

ROWS, TEXT = families.TOKENS.shape
WITH_MTP = dataclasses.replace(families.FAMILIES["llama3"], num_mtp=1, eos_tokens=(3, 5))
CLOSE = {"atol": 2e-5, "rtol": 2e-5}

apply = jax.jit(model.apply, static_argnums=0)


@pytest.fixture(autouse=True)
def exact():
    """A GPU would otherwise round the products of float32."""
    with jax.default_matmul_precision("highest"):
        yield


CONTRACT_MODELS = [
    # Families with, between them, all that the others have; one with several layers, of which
    # each takes time to compile.
    *[("llama3", 2), ("qwen2-tied", 1), ("qwen3", 1)],
    *[
        pytest.param(family, 2, marks=pytest.mark.slow)
        for family in families.FAMILIES
        if family != "llama3"
    ],
]


@pytest.fixture
def directory(tmp_path):
    return families.write_checkpoint(tmp_path / "checkpoint", WITH_MTP)


def load(directory, settings):
    return checkpoint.load(families.write_checkpoint(directory, settings), jnp.float32)


def read(settings, params, cache, tokens, widths):
    """The logits of a text that the model reads in blocks of these widths, and the cache."""
    parts, start = [], 0
    for width in widths:
        block = jnp.asarray(tokens[:, start : start + width])
        logits, cache = apply(settings, params, block, cache)
        cache = dataclasses.replace(cache, length=cache.length + width)
        parts.append(np.asarray(logits))
        start += width
    return np.concatenate(parts, axis=1), cache


def empty_cache(settings, size=TEXT, mtp=False, rows=ROWS, mesh=None):
    return model.init_cache(settings, rows, size, jnp.float32, mtp=mtp, mesh=mesh)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_logits_equal_those_recorded_from_transformers(family, tmp_path):
    settings, params = load(tmp_path, families.FAMILIES[family])
    logits, _ = read(settings, params, empty_cache(settings), families.TOKENS, [TEXT])
    golden = np.load(families.GOLDEN)[family]
    np.testing.assert_allclose(logits[:, -golden.shape[1] :], golden, **CLOSE)


@pytest.mark.parametrize(("family", "depth"), CONTRACT_MODELS)
def test_it_keeps_the_contract_of_a_model(family, depth, tmp_path):
    settings = dataclasses.replace(families.FAMILIES[family], num_layers=depth)
    settings, params = load(tmp_path, settings)
    report = jax_sa.check_model(
        functools.partial(model.apply, settings),
        params,
        lambda rows, capacity: empty_cache(settings, capacity, rows=rows),
        capacity=24,
    )
    assert report.ok, str(report)


@pytest.mark.parametrize(("family", "depth"), CONTRACT_MODELS)
def test_it_keeps_the_contract_of_a_packed_model(family, depth, tmp_path):
    settings = dataclasses.replace(families.FAMILIES[family], num_layers=depth)
    settings, params = load(tmp_path, settings)

    def init_cache(rows, capacity):
        pages = rows * -(-capacity // 8)
        return paged.init_packed_cache(settings, rows, pages, 8, capacity, jnp.float32)

    report = jax_sa.check_model(
        functools.partial(paged.apply_packed, settings),
        params,
        init_cache,
        capacity=24,
        packed=True,
        trees=True,
    )
    assert report.ok, str(report)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_logits_equal_those_of_transformers(family, tmp_path):
    for package in ("torch", "transformers"):
        pytest.importorskip(package, reason=f"{package} is not installed; see the recorded logits")
    settings, params = load(tmp_path, families.FAMILIES[family])
    logits, _ = read(settings, params, empty_cache(settings), families.TOKENS, [TEXT])
    np.testing.assert_allclose(logits, families.transformers_logits(tmp_path), **CLOSE)


def test_blocks_of_any_width_give_the_same_logits(tmp_path, layers):
    settings, params = load(tmp_path, families.FAMILIES["qwen3"])
    whole, _ = read(settings, params, empty_cache(settings), families.TOKENS, [TEXT])
    widths = [1, 1, 17, 5, 1, 40, 31]
    parts, _ = read(settings, params, empty_cache(settings), families.TOKENS, widths)
    np.testing.assert_allclose(parts, whole, **CLOSE)


@pytest.fixture(params=["apart", "in one array"])
def layers(request, monkeypatch):
    """How the arrays of the layers are held, as on a CPU and as on a GPU."""
    monkeypatch.setattr(weights, "in_one_array", lambda: request.param == "in one array")


def packed_cache(settings, mesh=None):
    """A cache in which both rows have, in turns, a page more, with enough for their texts."""
    cache = paged.init_packed_cache(settings, ROWS, 2 * 7, 16, TEXT, jnp.float32, mesh)
    table = cache.block_table
    for count in range(16, TEXT + 1, 16):
        wanted = jnp.asarray([0, count, count], jnp.int32)
        table, granted = jax_sa.cache_schema.claim_blocks(table, wanted)
        assert granted.all()
    return dataclasses.replace(cache, block_table=table)


@functools.partial(jax.jit, static_argnums=0)
def apply_packed(settings, params, tokens, rows, positions, cache):
    logits, cache = paged.apply_packed(settings, params, tokens, rows, positions, cache)
    return logits(jnp.arange(tokens.size, dtype=jnp.int32)), cache


def read_packed(settings, params, cache, total, steps):
    """The logits float32[B, TEXT, V] of texts, of which each step reads so many tokens by row."""
    done, found = np.zeros(ROWS, int), np.zeros((ROWS, TEXT, settings.vocab_size), np.float32)
    for counts in steps:
        rows = np.full(total, ROWS, np.int32)
        tokens, positions = np.full(total, 7, np.int32), np.zeros(total, np.int32)
        rows[: sum(counts)] = np.repeat(np.arange(ROWS), counts)
        for row in range(ROWS):
            positions[rows == row] = np.arange(done[row], done[row] + counts[row])
            tokens[rows == row] = families.TOKENS[row, positions[rows == row]]
        arrays = (jnp.asarray(x) for x in (tokens, rows, positions))
        logits, cache = apply_packed(settings, params, *arrays, cache)
        for row in range(ROWS):
            found[row, positions[rows == row]] = logits[rows == row]
        done += counts
    assert (done == TEXT).all()
    return found, cache


STEPS = [(30, 3), (1, 29), (5, 1), (1, 1), (0, 32), *[(28, 4), (6, 26), (25, 0)]]


@pytest.mark.parametrize("name", ["qwen3", "llama-bias"])
def test_a_packed_block_gives_the_logits_of_a_dense_one(tmp_path, layers, name):
    settings, params = load(tmp_path, families.FAMILIES[name])
    dense, _ = read(settings, params, empty_cache(settings), families.TOKENS, [TEXT])
    packed, _ = read_packed(settings, params, packed_cache(settings), 36, STEPS)
    np.testing.assert_allclose(packed, dense, **CLOSE)


def test_padding_and_places_without_a_page_write_nothing(tmp_path, layers):
    settings, params = load(tmp_path, families.FAMILIES["llama"])
    _, cache = read_packed(settings, params, packed_cache(settings), 36, STEPS)
    rows = jnp.asarray([0, 1, 2, 2, 9], jnp.int32)
    positions = jnp.asarray([TEXT, TEXT + 400, 3, 3, 3], jnp.int32)
    _, after = apply_packed(settings, params, rows, rows, positions, cache)
    jax.tree.map(np.testing.assert_array_equal, after, cache)


def test_a_row_writes_to_its_own_pages_alone(tmp_path, layers):
    settings, params = load(tmp_path, families.FAMILIES["llama"])
    before = packed_cache(settings)
    _, after = read_packed(settings, params, before, 36, STEPS)
    tokens = jnp.asarray([5, 6, 7], jnp.int32)
    rows, positions = jnp.ones(3, jnp.int32), jnp.asarray([14, 15, 16], jnp.int32)
    _, last = apply_packed(settings, params, tokens, rows, positions, after)
    own = np.asarray(before.block_table.pages[2])[:2]
    for old, new in zip(after.keys + after.values, last.keys + last.values, strict=True):
        changed = np.argwhere((np.asarray(old) != np.asarray(new)).any(axis=(0, 2, 4)))
        assert changed.tolist() == sorted([[own[0], 14], [own[0], 15], [own[1], 0]])


@pytest.mark.parametrize("total", [1, 5])
def test_the_packed_cache_is_updated_in_place(tmp_path, layers, total):
    settings, params = load(tmp_path, families.FAMILIES["llama"])

    def loop(params, tokens, cache):
        def step(_, carry):
            tokens, cache = carry
            rows = jnp.zeros(total, jnp.int32)
            logits, cache = apply_packed(settings, params, tokens, rows, tokens, cache)
            return jnp.argmax(logits, axis=-1).astype(jnp.int32), cache

        return jax.lax.fori_loop(0, 5, step, (tokens, cache))

    cache = paged.init_packed_cache(settings, ROWS, 501, 16, TEXT, jnp.float32)
    tokens = jnp.zeros(total, jnp.int32)
    compiled = jax.jit(loop, donate_argnums=2).lower(params, tokens, cache).compile()
    assert "502,2,16,8]" in compiled.as_text()
    copies = [
        line.strip()
        for line in compiled.as_text().splitlines()
        if re.search(r"502,2,16,8\]\S* copy\(", line)
    ]
    assert not copies


def test_what_lies_beyond_the_length_of_a_slot_does_not_matter(tmp_path):
    """Slots of different lengths, after a block whose end was refused."""
    settings, params = load(tmp_path, families.FAMILIES["llama3"])
    whole, _ = read(settings, params, empty_cache(settings), families.TOKENS, [TEXT])
    lengths = np.array([50, 31], np.int32)
    _, cache = read(settings, params, empty_cache(settings), families.TOKENS, [60])
    cache = dataclasses.replace(cache, length=jnp.asarray(lengths))
    blocks = [families.TOKENS[row, n : n + 4] for row, n in enumerate(lengths)]
    logits, _ = apply(settings, params, jnp.asarray(np.stack(blocks)), cache)
    for row, n in enumerate(lengths):
        np.testing.assert_allclose(logits[row], whole[row, n : n + 4], **CLOSE)


@pytest.mark.parametrize("width", [1, 6])
def test_what_does_not_fit_the_cache_harms_nothing(tmp_path, width):
    settings, params = load(tmp_path, families.FAMILIES["llama"])
    _, cache = read(settings, params, empty_cache(settings, size=20), families.TOKENS, [20])
    full = dataclasses.replace(cache, length=cache.length + (1 - width) + 3)
    _, after = apply(settings, params, jnp.ones((ROWS, width), jnp.int32), full)
    kept = int(full.length[0])
    for old, new in zip(cache.keys + cache.values, after.keys + after.values, strict=True):
        np.testing.assert_array_equal(new[..., :kept, :], old[..., :kept, :])


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("width", [1, 3])
def test_the_cache_is_updated_in_place(tmp_path, layers, rows, width):
    settings, params = load(tmp_path, families.FAMILIES["llama"])

    def loop(params, tokens, cache):
        def step(_, carry):
            tokens, cache = carry
            logits, cache = model.apply(settings, params, tokens, cache)
            return jnp.argmax(logits, axis=-1).astype(jnp.int32), cache

        return jax.lax.fori_loop(0, 5, step, (tokens, cache))

    cache = empty_cache(settings, size=4096, rows=rows)
    tokens = jnp.zeros((rows, width), jnp.int32)
    compiled = jax.jit(loop, donate_argnums=2).lower(params, tokens, cache).compile()
    smallest = 4096 * settings.head_dim * cache.keys[0].itemsize
    assert not copies.find_copies(compiled.as_text(), smallest)


def test_bfloat16(tmp_path):
    settings = families.FAMILIES["qwen2"]
    families.write_checkpoint(tmp_path, settings)
    _, exact = checkpoint.load(tmp_path, jnp.float32)
    _, params = checkpoint.load(tmp_path, jnp.bfloat16)
    cache = model.init_cache(settings, ROWS, TEXT, jnp.bfloat16, mtp=False)
    logits, _ = read(settings, params, cache, families.TOKENS, [TEXT])
    expected, _ = read(settings, exact, empty_cache(settings), families.TOKENS, [TEXT])
    assert logits.dtype == np.float32
    assert np.linalg.norm(logits - expected) < 0.05 * np.linalg.norm(expected)


@pytest.mark.parametrize("devices", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_devices_share_the_model(tmp_path, layers, devices):
    if len(jax.devices()) < devices:
        pytest.skip(f"{len(jax.devices())} devices, {devices} needed")
    settings = dataclasses.replace(WITH_MTP, num_heads=8, num_kv_heads=4)
    families.write_checkpoint(tmp_path, settings)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), (weights.AXIS,))
    logits = []
    for where in (None, mesh):
        _, params = checkpoint.load(tmp_path, jnp.float32, where)
        cache = empty_cache(settings, mesh=where, mtp=True)
        logits.append(read(settings, params, cache, families.TOKENS, [35, 1])[0])
        packed = packed_cache(settings, where)
        logits.append(read_packed(settings, params, packed, 36, STEPS)[0][:, :36])
        shards = layer(params)["qkv"].sharding.num_devices, cache.keys[0].sharding.num_devices
        assert shards == ((devices, devices) if where else (1, 1))
    for name, axis, size in (
        ("qkv", -1, 128),
        ("o", -2, 64),
        ("gate_up", -1, 48),
        ("down", -2, 48),
    ):
        assert layer(params)[name].addressable_shards[0].data.shape[axis] == size // devices
    for other in logits[1:]:
        np.testing.assert_allclose(other, logits[0], **CLOSE)


def layer(params):
    """The arrays of the first layer, or of all."""
    return params["layers"][0] if isinstance(params["layers"], list) else params["layers"]


def test_devices_that_do_not_divide_the_heads_are_refused(directory):
    mesh = jax.sharding.Mesh(np.array([jax.devices()[0]] * 3), (weights.AXIS,))
    with pytest.raises(
        ValueError, match=r"^tp_size: expected a divisor of the model's 4 attention"
    ):
        checkpoint.load(directory, jnp.float32, mesh)


def whole_text_attention(q, k, v, memory, layer):
    """The slow, obvious attention: no cache."""
    shared = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(x, shared, axis=2) for x in (k, v))
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / np.sqrt(q.shape[-1])
    visible = jnp.tril(jnp.ones(scores.shape[-2:], bool))[None, None]
    share = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf), axis=-1)
    return jnp.einsum("bhts,bshd->bthd", share, v), memory


@functools.partial(jax.jit, static_argnums=0)
def module_logits(settings, params, tokens):
    """What the MTP module says at each position of a text but the last, from the text alone."""
    positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    attend = whole_text_attention
    embedded = params["embed"][tokens]
    hidden, _ = model.decode(settings, params, embedded, positions, attend, None)
    x, _ = mtp.decode(
        settings, params, hidden[:, :-1], embedded[:, 1:], positions[:, :-1], attend, None
    )
    return model.unembed(settings, params, x, None)


def expected_draft(settings, params, text):
    """The token after a text that the module expects."""
    # One compiled size for all texts: what follows a text does not matter to it.
    padded = np.zeros((1, TEXT), np.int32)
    padded[0, : len(text)] = text
    return int(jnp.argmax(module_logits(settings, params, jnp.asarray(padded))[0, len(text) - 2]))


def test_the_drafter_drafts_what_its_module_says_of_the_whole_text(directory):
    settings, params = checkpoint.load(directory, jnp.float32)
    drafting = drafter.mtp_drafter(settings, 1)
    text = families.TOKENS[:, :40]
    lengths = jnp.asarray([20, 7], jnp.int32)
    last = jnp.asarray([text[0, 20], text[1, 7]])
    prefill, draft = jax.jit(drafting.prefill), jax.jit(drafting.draft)
    _, cache = apply(settings, params, jnp.asarray(text), empty_cache(settings, mtp=True))
    cache = dataclasses.replace(cache, length=lengths)
    drafted, cache = prefill(params, jnp.asarray(text), lengths, last, cache)
    ends = [21, 8]
    for row, end in enumerate(ends):
        assert drafted[row, 0] == expected_draft(settings, params, text[row, :end])

    # Two steps of blocks whose ends are refused, of different lengths by row.
    for emitted in ([4, 1], [2, 6]):
        blocks = np.full((ROWS, 7), 9, np.int32)
        tokens = np.zeros((ROWS, 7), np.int32)
        for row, (end, count) in enumerate(zip(ends, emitted, strict=True)):
            blocks[row, :count] = text[row, end - 1 : end - 1 + count]
            tokens[row, :count] = text[row, end : end + count]
        _, cache = apply(settings, params, jnp.asarray(blocks), cache)
        count = jnp.asarray(emitted, jnp.int32)
        cache = dataclasses.replace(cache, length=cache.length + count)
        accepted = jax_sa.Accepted(jnp.asarray(tokens), count)
        drafted, cache = draft(params, accepted, cache)
        ends = [end + count for end, count in zip(ends, emitted, strict=True)]
        for row, end in enumerate(ends):
            assert drafted[row, 0] == expected_draft(settings, params, text[row, :end])


def test_a_longer_draft_begins_with_the_shorter_and_leaves_nothing_behind(directory):
    settings, params = checkpoint.load(directory, jnp.float32)
    text = jnp.asarray(families.TOKENS[:, :30])
    lengths = jnp.full(ROWS, 29, jnp.int32)
    accepted = jax_sa.Accepted(text[:, :1], jnp.ones(ROWS, jnp.int32))
    drafts = []
    for width in (1, 3):
        drafting = drafter.mtp_drafter(settings, width)
        prefill, draft = jax.jit(drafting.prefill), jax.jit(drafting.draft)
        _, cache = apply(settings, params, text, empty_cache(settings, mtp=True))
        cache = dataclasses.replace(cache, length=lengths)
        first, cache = prefill(params, text, lengths, text[:, 29], cache)
        cache = dataclasses.replace(cache, length=lengths + 1)
        second, _ = draft(params, accepted, cache)
        assert first.shape == second.shape == (ROWS, width)
        drafts.append(np.stack([first[:, 0], second[:, 0]]))
    np.testing.assert_array_equal(*drafts)


@functools.partial(jax.jit, static_argnums=0)
def next_token(settings, params, text, length):
    logits, _ = model.apply(settings, params, text, empty_cache(settings, rows=1))
    return jnp.argmax(logits[0, length - 1])


def plain_decoding(settings, params, prompt, count):
    """The tokens that follow a prompt, the whole text read anew for each."""
    text = np.zeros((1, TEXT), np.int32)
    text[0, : len(prompt)] = prompt
    for length in range(len(prompt), len(prompt) + count):
        text[0, length] = next_token(settings, params, text, length)
    return text[0, len(prompt) : len(prompt) + count].tolist()


@pytest.mark.parametrize("mtp_tokens", [0, pytest.param(1, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize("automata", [False, True])
def test_generation_with_drafts_equals_plain_decoding(directory, automata, mtp_tokens):
    settings, params = checkpoint.load(directory, jnp.float32)

    lengths = np.array([30, 11], np.int32)
    done = jax_sa.generate(
        functools.partial(model.apply, settings),
        params,
        jnp.asarray(families.TOKENS[:, :30]),
        jnp.asarray(lengths),
        empty_cache(settings, mtp=mtp_tokens > 0),
        max_new_tokens=40,
        max_draft=4,
        draft_widths=(1, 4) if automata else (1, 3),
        state=jax_sa.init(ROWS, TEXT) if automata else None,
        drafter=drafter.mtp_drafter(settings, mtp_tokens) if mtp_tokens else None,
    )
    for row, length in enumerate(lengths):
        expected = plain_decoding(settings, params, families.TOKENS[row, :length], 40)
        assert np.asarray(done.tokens[row]).tolist() == expected
    if automata or mtp_tokens:
        assert int(done.drafted.sum()) > 0


def test_without_a_drafter_no_hidden_states_of_prompts_are_computed(directory):
    settings, params = checkpoint.load(directory, jnp.float32)
    decoder = jax_sa.Decoder(
        functools.partial(model.apply, settings), drafter=drafter.mtp_drafter(settings, 1)
    )

    def read(params, cache, costs):
        prompts, lengths = jnp.asarray(families.TOKENS[:, :30]), jnp.asarray([30, 11], jnp.int32)
        return decoder.init(params, prompts, lengths, cache, max_new_tokens=40, costs=costs)

    for step, is_read in ((1.5, True), (jnp.inf, False)):
        costs = jnp.asarray([0.0, 1.0, step, step], jnp.float32)
        cache = jax.jit(read)(params, empty_cache(settings, mtp=True), costs).cache
        assert bool(cache.hidden.any()) == is_read
        assert cache.length.tolist() == [29, 10]


def test_a_config_is_read_as_it_was_written():
    for settings in [*families.FAMILIES.values(), WITH_MTP]:
        assert config.from_hf(json.loads(json.dumps(config.to_hf(settings)))) == settings


def test_a_config_as_llama_3_publishes_it():
    read = config.from_hf(
        {
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-05,
            "rope_theta": 500000.0,
            "rope_scaling": {
                "factor": 8.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "eos_token_id": [128001, 128008, 128009],
            "mlp_bias": False,
            "pretraining_tp": 1,
        }
    )
    assert read.head_dim == 128 and read.rope_theta == 500000.0 and not read.tied
    assert read.rope_scaling == config.Llama3Rope(8.0, 1.0, 4.0, 8192)
    assert read.eos_tokens == (128001, 128008, 128009)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "architectures: .*, got MambaForCausalLM"),
        ({"architectures": None}, "architectures: expected one of Llama.*, got None"),
        ({"hidden_size": None}, "hidden_size: expected a positive int, got None"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: expected a positive int, got 0"),
        ({"vocab_size": "many"}, "vocab_size: expected a positive int, got 'many'"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: expected a divisor of .* 4, got 3"),
        ({"mlp_bias": True}, "mlp_bias: expected False, .*, got True"),
        ({"hidden_act": "gelu"}, "hidden_act: expected silu, .*, got 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: expected None, .*, got"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type: .* got 'yarn'"),
        ({"num_nextn_predict_layers": 2}, "num_nextn_predict_layers: expected 0 or 1, got 2"),
        ({"eos_token_id": "end"}, "eos_token_id: expected token ids, got 'end'"),
    ],
)
def test_a_config_outside_the_family_is_refused(change, message):
    with pytest.raises(ValueError, match=rf"^{message}"):
        config.from_hf(config.to_hf(WITH_MTP) | change)


def split_into_shards(directory):
    """As large checkpoints are stored."""
    arrays = checkpoint.read_safetensors(directory / checkpoint.WEIGHTS_FILE)
    names = sorted(arrays)
    index = {}
    for shard, part in enumerate((names[::2], names[1::2])):
        path = directory / f"model-{shard}.safetensors"
        checkpoint.write_safetensors(path, {name: np.array(arrays[name]) for name in part})
        index |= dict.fromkeys(part, path.name)
    (directory / checkpoint.WEIGHTS_FILE).unlink()
    (directory / checkpoint.INDEX_FILE).write_text(json.dumps({"weight_map": index}))


def test_shards(directory):
    _, expected = checkpoint.load(directory, jnp.float32)
    split_into_shards(directory)
    _, params = checkpoint.load(directory, jnp.float32)
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_what_is_saved_is_what_transformers_reads(directory):
    safetensors = pytest.importorskip(
        "safetensors.numpy", reason="safetensors is not installed; it must read what is written"
    )
    written = checkpoint.read_safetensors(directory / checkpoint.WEIGHTS_FILE)
    theirs = safetensors.load_file(directory / checkpoint.WEIGHTS_FILE)
    assert written.keys() == theirs.keys()
    for name in written:
        np.testing.assert_array_equal(written[name], theirs[name])


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


BREAK = {
    "no such directory": (shutil.rmtree, "no such directory"),
    "no config": (lambda d: (d / "config.json").unlink(), r"config\.json: No such file"),
    "no JSON": (lambda d: (d / "config.json").write_text("{"), r"config\.json: expected JSON, got"),
    "no object": (lambda d: (d / "config.json").write_text("[]"), "expected a JSON object"),
    "no weights": (lambda d: (d / checkpoint.WEIGHTS_FILE).unlink(), "has neither model.safe"),
    "part of the weights": (lambda d: truncate(d / checkpoint.WEIGHTS_FILE), "incomplete: has "),
    "no header": (lambda d: (d / checkpoint.WEIGHTS_FILE).write_bytes(b"x" * 99), "not a safetens"),
    "an empty file": (
        lambda d: (d / checkpoint.WEIGHTS_FILE).write_bytes(b""),
        "model.safetensors",
    ),
}


@pytest.mark.parametrize("name", BREAK)
def test_a_missing_or_partial_checkpoint_is_one_line(directory, name):
    breaks, message = BREAK[name]
    breaks(directory)
    with pytest.raises(ValueError, match=message) as error:
        checkpoint.load(directory, jnp.float32)
    assert "\n" not in str(error.value) and str(directory) in str(error.value)


def test_a_missing_shard_is_one_line(directory):
    split_into_shards(directory)
    (directory / "model-1.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model-1\.safetensors: No such file"):
        checkpoint.load(directory, jnp.float32)


def test_weights_of_another_model_are_refused(directory):
    other = dataclasses.replace(WITH_MTP, intermediate_size=64, qk_norm=True)
    text = json.dumps(config.to_hf(other))
    (directory / "config.json").write_text(text)
    with pytest.raises(
        ValueError, match=r"expected shape \[32, 64\] by config.json, got \[32, 48\]"
    ):
        checkpoint.load(directory, jnp.float32)
    deeper = dataclasses.replace(WITH_MTP, num_layers=4)
    (directory / "config.json").write_text(json.dumps(config.to_hf(deeper)))
    with pytest.raises(ValueError, match=r"has no weight model\.layers\.3\."):
        checkpoint.load(directory, jnp.float32)
