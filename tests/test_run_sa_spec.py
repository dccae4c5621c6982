"""The command that decodes speculatively, and the checkpoint and the prompts that ship with it."""

import json
import pathlib
import shutil
import sys
import zlib

import jax
import pytest

pytest.importorskip(
    "tokenizers", reason="tokenizers is not installed; pip install jax_sa[tokenizer]"
)

import run_sa_spec
import train_checkpoint
from llama import checkpoint, weights
from llama import config as llama_config

EXAMPLES = pathlib.Path(run_sa_spec.__file__).parent
BUNDLED = EXAMPLES / "checkpoint"
PROMPTS = EXAMPLES / "prompts" / "mixed.jsonl"
TEXTS = {
    "code": "def area(width, height):\n    return",
    "phrase": "[ok] the quick brown fox jumps over the lazy dog\n" * 5,
    "prose": "The file",
}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    entries = [json.dumps({"group": group, "prompt": text}) for group, text in TEXTS.items()]
    path.write_text("\n".join(entries))
    return path


def compare(prompts, *options):
    """The report of --compare."""
    command = ["--compare", "--prompts", prompts, "--max_new_tokens", 40, *options]
    return run_sa_spec.compare_modes(run_sa_spec.parse_args(list(map(str, command))))


@pytest.fixture(scope="module")
def report(prompts):
    return compare(prompts)


def test_four_ways_of_drafting_write_the_same_in_fewer_steps(report):
    assert list(report["modes"]) == ["none", "MTP", "SA", "SA+MTP"]
    for figures in report["modes"].values():
        assert figures["identical"] == len(TEXTS)
        assert figures["tokens"] == report["modes"]["none"]["tokens"] > 0
    steps = {name: figures["tokens_per_step"] for name, figures in report["modes"].items()}
    assert steps["none"] == 1.0
    assert min(steps["MTP"], steps["SA"]) > 1.2 and steps["SA+MTP"] > steps["MTP"]
    assert report["groups"]["phrase"]["SA"]["tokens_per_step"] > 3
    assert report["differences"] == []


def test_tables(report):
    difference = {"mode": "SA", "prompt": 2, "token": 7, "logit_gap": 1.5e-6}
    text = run_sa_spec.format_comparison(report | {"differences": [difference]})
    for word in ("tokens/step", "accepted", "tokens/s", "identical", "3/3", *TEXTS):
        assert word in text
    assert text.endswith("SA: prompt 2 differs from token 7 on, where the logits differ by 1.5e-06")


def test_batches_write_what_single_prompts_do(report, prompts):
    together = compare(prompts, "--batch_size", 2)
    for name, figures in report["modes"].items():
        for key in ("tokens", "tokens_per_step", "acceptance_rate", "identical"):
            assert together["modes"][name][key] == figures[key]
    assert together["groups"]["code"]["SA"]["tokens_per_second"] is None
    run_sa_spec.format_comparison(together)


def run(capsys, *options):
    """What the command prints, where it must succeed."""
    assert run_sa_spec.main([str(option) for option in options]) == 0
    return capsys.readouterr().out


def written(capsys, prompts, *options):
    return run(capsys, "--prompts", prompts, "--max_new_tokens", 30, *options)


def test_what_is_streamed_is_the_same_in_every_mode(capsys, prompts):
    plain = written(capsys, prompts)
    assert "--- phrase ---" in plain and plain.count("[ok] the quick brown fox") > 3
    assert written(capsys, prompts, "--use_sa_spec") == plain
    assert written(capsys, prompts, "--num_nextn_predict_layers", 2) == plain
    assert written(capsys, prompts, "--use_sa_spec", "--batch_size", 3) == plain


@pytest.mark.parametrize("devices", [2, 4])
def test_devices_that_share_the_model_write_the_same(capsys, prompts, devices):
    if len(jax.devices()) < devices:
        pytest.skip(f"{len(jax.devices())} devices, {devices} needed")
    options = ("--use_sa_spec", "--num_nextn_predict_layers", 1)
    plain = written(capsys, prompts)
    assert written(capsys, prompts, *options, "--tp_size", devices) == plain


def test_sampling(capsys, prompts):
    options = ("--use_sa_spec", "--temperature", 0.8, "--seed")
    assert written(capsys, prompts, *options, 1) == written(capsys, prompts, *options, 1)
    assert written(capsys, prompts, *options, 1) != written(capsys, prompts, *options, 2)


def test_sampled_texts_are_not_compared(prompts):
    got = compare(prompts, "--temperature", 0.8, "--num_nextn_predict_layers", 0)
    assert list(got["modes"]) == ["none", "SA"]
    assert got["modes"]["SA"]["identical"] is None and got["differences"] == []
    assert "sampled" in run_sa_spec.format_comparison(got)


def test_a_close_call_is_told_from_a_fault(capsys, prompts):
    """Where two texts part, the report says by how much the model preferred its own token."""
    args = run_sa_spec.parse_args(["--prompts", str(prompts), "--max_new_tokens", "8"])
    engine = run_sa_spec.Engine(args)
    plain, _ = engine.generate(run_sa_spec.Mode(False, 0), engine.prompts[:1])
    other = [run_sa_spec.Result((*plain[0].tokens[:3], 17), 4, 0, 0)]
    engine.prompts = engine.prompts[:1]
    (found,) = run_sa_spec._differences(engine, {"none": plain, "SA": other})
    assert (found["mode"], found["prompt"], found["token"]) == ("SA", 0, 3)
    assert found["logit_gap"] > 0


def test_confirmed_drafts_are_highlighted():
    def decode(tokens):
        return bytes(tokens).decode("utf-8", errors="replace")

    euro = list("€".encode())
    writer = run_sa_spec.Writer(decode, colour=True)
    assert writer.write(list(b"abc")) == f"{run_sa_spec.HIGHLIGHT}ab{run_sa_spec.PLAIN}c"
    assert writer.write(list(b"d")) == "d"
    # A character waits until all its bytes are there.
    assert writer.write(euro[:2]) == ""
    assert writer.write(euro[2:]) == "€"
    plain = run_sa_spec.Writer(decode, colour=False)
    assert plain.write(list(b"abc")) == "abc"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "nowhere"], "nowhere: no such directory"),
        (["--prompts", "nothing.jsonl"], "nothing.jsonl: No such file or directory"),
        (["--sa_spec_threshold", "0"], "--sa_spec_threshold: expected an int in [1, "),
        (["--num_nextn_predict_layers", "-1"], "--num_nextn_predict_layers: expected an int in [0"),
        (["--batch_size", "0"], "--batch_size: expected an int in [1, "),
        (["--max_draft", "0"], "--max_draft: expected an int in [1, "),
        (["--temperature", "-1"], "--temperature: expected a finite number above 0"),
        (["--tp_size", "3"], "tp_size: expected a divisor of the model's 8 attention heads, got 3"),
        (["--tp_size", "1000"], "tp_size: expected at most the "),
        (["--max_new_tokens", "1020"], "prompts: expected at most 4 tokens, so that 1020 more fit"),
    ],
)
def test_bad_options_are_one_line(capsys, prompts, options, message):
    if options == ["--tp_size", "3"] and len(jax.devices()) < 3:
        pytest.skip("3 devices needed")
    assert run_sa_spec.main(["--prompts", str(prompts), *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {message}")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no prompts"),
        ('{"prompt": ""}\n{"prompt": ""}', "1: prompt: expected a text, got ''"),
        ('{"prompt": "a"}\nno', '2: expected {"group": ..., "prompt": ...}, got \'no\''),
        ('{"prompt": 3}', "1: prompt: expected a text, got 3"),
    ],
)
def test_bad_prompts_are_one_line(capsys, tmp_path, content, message):
    path = tmp_path / "prompts.jsonl"
    path.write_text(content)
    assert run_sa_spec.main(["--prompts", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}") and message in error and error.count("\n") == 1


def without_mtp(directory):
    """The bundled checkpoint as one of a model without an MTP module."""
    shutil.copytree(BUNDLED, directory)
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_nextn_predict_layers": 0}))
    return directory


def test_a_checkpoint_without_mtp_module(capsys, tmp_path, prompts):
    directory = without_mtp(tmp_path / "plain")
    options = ["--model", str(directory), "--prompts", str(prompts)]
    assert run_sa_spec.main([*options, "--num_nextn_predict_layers", "1"]) == 2
    assert "the checkpoint has no MTP module" in capsys.readouterr().err
    text = run(capsys, *options, "--compare", "--json", "--max_new_tokens", "8")
    assert list(json.loads(text)["modes"]) == ["none", "SA"]


def test_a_checkpoint_without_tokenizer(capsys, tmp_path, prompts):
    directory = without_mtp(tmp_path / "plain")
    for content in (None, "{"):
        path = directory / "tokenizer.json"
        path.unlink() if content is None else path.write_text(content)
        assert run_sa_spec.main(["--model", str(directory), "--prompts", str(prompts)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {path}: no") and error.count("\n") == 1


def test_the_bundled_checkpoint():
    assert sum(path.stat().st_size for path in BUNDLED.iterdir()) <= 16_000_000
    settings = llama_config.read(BUNDLED)
    assert settings.num_mtp == 1
    card = (BUNDLED / "README.md").read_text()
    assert f"{weights.count(weights.describe(settings)) / 1e6:.2f} million parameters" in card
    assert f"{settings.vocab_size} tokens" in card


def test_the_bundled_prompts_of_source_were_held_back():
    held_back = json.loads((BUNDLED / "corpus.json").read_text())["held_back"]
    entries = [json.loads(line) for line in PROMPTS.read_text().splitlines()]
    groups = {entry["group"] for entry in entries}
    assert {"held-back source", "code edit", "structured data", "repeated phrase"} <= groups
    sources = [e for e in entries if e["group"] in ("held-back source", "code edit")]
    assert len(sources) >= 8
    for entry in sources:
        name = entry["from"]
        assert name in held_back and zlib.crc32(name.encode()) % 40 == 0


def test_the_training_script_writes_a_checkpoint_that_runs(capsys, tmp_path, prompts):
    out = tmp_path / "trained"
    options = {
        "--steps": 20,
        "--batch_size": 2,
        "--context": 256,
        "--vocab_size": 400,
        "--layers": 1,
        "--hidden_size": 64,
        "--package_mb": 4,
        "--corpus_mb": 4,
    }
    flat = [str(part) for option in options.items() for part in option]
    # jax.nn.dot_product_attention does not work with the suite's strict promotion.
    with jax.numpy_dtype_promotion("standard"):
        assert train_checkpoint.main(["--out", str(out), *flat]) == 0
    assert "held back loss" in capsys.readouterr().out
    settings, params = checkpoint.load(out, jax.numpy.float32)
    assert settings.num_layers == 1 and "mtp" in params
    assert "| python |" in (out / "README.md").read_text()
    options = ("--use_sa_spec", "--num_nextn_predict_layers", 1)
    plain = written(capsys, prompts, "--model", out)
    assert written(capsys, prompts, "--model", out, *options) == plain


@pytest.mark.parametrize("script", [run_sa_spec, train_checkpoint])
def test_help(capsys, monkeypatch, script):
    monkeypatch.setattr(sys, "argv", [script.__file__])
    with pytest.raises(SystemExit) as stop:
        script.main(["--help"])
    assert stop.value.code == 0 and "usage:" in capsys.readouterr().out
