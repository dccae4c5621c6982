"""The command that decodes speculatively, and the checkpoint and the prompts that ship with it."""

import collections
import json
import pathlib
import shutil
import sys
import zlib

import jax
import jax.numpy as jnp
import pytest

pytest.importorskip(
    "tokenizers", reason="tokenizers is not installed; pip install jax_sa[tokenizer]"
)

import comparison
import engine
import live_text
import run_sa_spec
import train_checkpoint

from jax_sa import calibration, decoder
from jax_sa.__main__ import main as jax_sa_main
from jax_sa.llama import checkpoint, weights
from jax_sa.llama import config as llama_config

EXAMPLES = pathlib.Path(run_sa_spec.__file__).parent
BUNDLED = EXAMPLES / "checkpoint"
PROMPTS = EXAMPLES / "prompts" / "mixed.jsonl"
INSTRUCT = EXAMPLES / "prompts" / "instruct.jsonl"
TEXTS = {
    "code": "def area(width, height):\n    return",
    "phrase": "[ok] the quick brown fox jumps over the lazy dog\n" * 5,
    "prose": "The file",
}


SHORT = ("--max_draft", 3)
"""Every width of a step is a program of its own to compile; these are four instead of seven."""
REPORTED = ("--max_new_tokens", 40, *SHORT)
"""The programs of `report`, which are compiled once for all tests that run them."""


@pytest.fixture(scope="module", autouse=True)
def falling_costs(compiled_once):
    """The wider a step, the less it costs: so all that is drafted is verified, in any batch, and no
    figure depends on how long a step takes here.
    """

    def measure(restart, advance, num_widths, on_progress):
        return 0.5 ** jnp.arange(num_widths, dtype=jnp.float32), restart(None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder, "measure_costs", measure)
        yield


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    entries = [json.dumps({"group": group, "prompt": text}) for group, text in TEXTS.items()]
    path.write_text("\n".join(entries))
    return path


def compare(prompts, *options):
    """The report of --compare."""
    command = ["--compare", "--prompts", prompts, *REPORTED, *options]
    return run_sa_spec.run(run_sa_spec.parse_args(list(map(str, command))))


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


def test_measured_costs_change_no_text(monkeypatch, report, prompts):
    monkeypatch.setattr(decoder, "measure_costs", calibration.measure_costs)
    options = ["--compare", "--prompts", prompts, *REPORTED]
    loaded = engine.Engine(run_sa_spec.parse_args(list(map(str, options))))
    measured = comparison.measure(loaded, [engine.Mode(True, 0)])
    (costs,) = loaded._costs.values()
    assert (costs > 0).all()  # on a GPU all of them may be equal
    texts = [entry["modes"]["SA"]["tokens"] for entry in report["written"]]
    assert [entry["modes"]["SA"]["tokens"] for entry in measured["written"]] == texts


def test_tables(report):
    difference = {"mode": "SA", "prompt": 2, "token": 7, "logit_gap": 1.5e-6}
    text = comparison.format_report(report | {"differences": [difference]})
    for word in ("tokens/step", "accepted", "tokens/s", "identical", "3/3", *TEXTS):
        assert word in text
    assert all(len(line) <= 80 for line in text.split("tokens/step", 1)[1].splitlines())
    assert text.endswith("SA: prompt 2 differs from token 7 on, where the logits differ by 1.5e-06")


@pytest.mark.slow
def test_batches_write_what_single_prompts_do(report, prompts):
    together = compare(prompts, "--batch_size", 2)
    for name, figures in report["modes"].items():
        for key in ("tokens", "tokens_per_step", "acceptance_rate", "identical"):
            assert together["modes"][name][key] == figures[key]
    assert together["groups"]["code"]["SA"]["tokens_per_second"] is None
    comparison.format_report(together)


def test_the_report_keeps_and_shows_what_was_written(report):
    shown = comparison.format_report(report)
    by_group = {entry["group"]: entry for entry in report["written"]}
    assert {group: entry["prompt"] for group, entry in by_group.items()} == TEXTS
    for entry in report["written"]:
        texts = {name: of_mode["text"] for name, of_mode in entry["modes"].items()}
        assert list(texts) == list(report["modes"]) and len(set(texts.values())) == 1
        assert 0 < len(entry["modes"]["SA"]["tokens"]) <= 40
        assert f"{comparison.heading(entry['group'], entry['prompt'])}\n{texts['SA']}" in shown
    tokens = sum(len(entry["modes"]["SA"]["tokens"]) for entry in report["written"])
    assert tokens == report["modes"]["SA"]["tokens"]


def run(capsys, *options):
    """What the command prints, where it must succeed."""
    assert run_sa_spec.main([str(option) for option in options]) == 0
    return capsys.readouterr().out


def written(capsys, prompts, *options):
    return run(capsys, "--prompts", prompts, "--max_new_tokens", 30, *SHORT, *options)


@pytest.mark.slow
def test_what_is_streamed_is_the_same_in_every_mode(capsys, prompts):
    plain = written(capsys, prompts, "--num_nextn_predict_layers", 0)
    assert "--- phrase ---" in plain and plain.count("[ok] the quick brown fox") > 3
    assert written(capsys, prompts) == plain
    assert written(capsys, prompts, "--use_sa_spec") == plain
    assert written(capsys, prompts, "--num_nextn_predict_layers", 2) == plain
    assert written(capsys, prompts, "--use_sa_spec", "--batch_size", 3) == plain


def summary(capsys, *options):
    """The lines on stderr that stand around the text."""
    assert run_sa_spec.main(["--prompt", TEXTS["code"], "--max_new_tokens", "12", *options]) == 0
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ([], "MTP"),
        (["--use_sa_spec", "--max_draft", "3"], "SA+MTP"),
        (["--num_nextn_predict_layers", "0"], "none"),
        (["--use_sa_spec", "--num_nextn_predict_layers", "0"], "SA"),
    ],
)
def test_drafts_come_from_what_the_checkpoint_holds(capsys, options, name):
    compiling, _, headline, time = summary(capsys, *options)
    assert compiling == f"{name}: compiling"
    assert headline.startswith(f"{name}: 12 tokens, ") and " per step, " in headline
    assert ("nothing drafted" if name == "none" else "% of drafted tokens accepted") in headline
    assert time.endswith(" s with compilation")


@pytest.mark.parametrize(
    ("options", "note"),
    [
        (["--max_draft", "16"], "--max_draft: no effect without --use_sa_spec"),
        (
            ["--draft_factor", "2", "--min_match", "2"],
            "--draft_factor, --min_match: no effect without --use_sa_spec",
        ),
        (
            ["--sa_spec_threshold", "3"],
            "--sa_spec_threshold: no effect without drafts of both automaton and MTP module",
        ),
        (
            ["--top_k", "9", "--top_p", "0.9", "--seed", "1"],
            "--top_k, --top_p, --seed: no effect at temperature 0",
        ),
        (["--use_sa_spec", "--max_draft", "2", "--sa_spec_threshold", "2"], None),
        (["--temperature", "1", "--top_k", "9", "--top_p", "0.9", "--seed", "1"], None),
    ],
)
def test_an_option_without_effect_says_so(capsys, options, note):
    lines = summary(capsys, *options)
    assert [line for line in lines if "no effect" in line] == ([note] if note else [])


def test_use_sa_spec_is_part_of_a_comparison(capsys, prompts):
    options = ("--compare", "--use_sa_spec", "--json", "--prompts", prompts, *REPORTED)
    assert run_sa_spec.main([*map(str, options), "--num_nextn_predict_layers", "0"]) == 0
    assert "--use_sa_spec: no effect with --compare" in capsys.readouterr().err


@pytest.mark.slow
def test_options_of_drafting_act(capsys, prompts):
    """Each drafts fewer tokens than without it; the text stays."""

    def figures(*options):
        always = ("--use_sa_spec", "--num_nextn_predict_layers", "0", "--json")
        text = written(capsys, prompts, *always, *options)
        report = json.loads(text)
        rate = report["modes"]["SA"]["acceptance_rate"]
        saved = report["modes"]["SA"]["tokens"] * (1 - 1 / report["modes"]["SA"]["tokens_per_step"])
        return round(saved / rate), report["written"]

    drafted, texts = figures()
    for option in (("--max_draft", 2), ("--draft_factor", 0.5), ("--min_match", 6)):
        fewer, same = figures(*option)
        assert fewer < drafted
        assert [e["modes"]["SA"]["tokens"] for e in same] == [
            e["modes"]["SA"]["tokens"] for e in texts
        ]


@pytest.mark.slow
def test_a_threshold_that_nothing_reaches_gives_the_neural_drafts(capsys, prompts):
    def figures(name, *options):
        report = json.loads(written(capsys, prompts, "--json", *options))
        counts = ("tokens", "tokens_per_step", "acceptance_rate")
        return [report["modes"][name][key] for key in counts]

    never = figures("SA+MTP", "--use_sa_spec", "--sa_spec_threshold", 2**30)
    assert never == figures("MTP") != figures("SA+MTP", "--use_sa_spec")


def test_json_of_one_mode(capsys):
    text = run(capsys, "--prompt", TEXTS["phrase"], "--json", *REPORTED)
    report = json.loads(text)
    assert list(report["modes"]) == ["MTP"] and report["modes"]["MTP"]["identical"] is None
    (entry,) = report["written"]
    assert entry["prompt"] == TEXTS["phrase"] and entry["modes"]["MTP"]["text"].startswith("[ok]")


@pytest.mark.slow
def test_sampling_of_the_likeliest_token_is_greedy(capsys, prompts):
    for option in (("--top_k", 1), ("--top_p", 1e-9)):
        assert written(capsys, prompts, "--temperature", 1, *option) == written(capsys, prompts)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 4])
def test_devices_that_share_the_model_write_the_same(capsys, prompts, devices):
    if len(jax.devices()) < devices:
        pytest.skip(f"{len(jax.devices())} devices, {devices} needed")
    plain = written(capsys, prompts)
    assert written(capsys, prompts, "--use_sa_spec", "--tp_size", devices) == plain


def test_sampling(capsys, prompts):
    options = ("--use_sa_spec", "--temperature", 0.8, "--seed")
    text = written(capsys, prompts, *options, 1)
    assert text == written(capsys, prompts, *options, 1)
    assert text != written(capsys, prompts, *options, 2)


@pytest.mark.slow
def test_sampled_texts_are_not_compared(prompts):
    got = compare(prompts, "--temperature", 0.8, "--num_nextn_predict_layers", 0)
    assert list(got["modes"]) == ["none", "SA"]
    assert got["modes"]["SA"]["identical"] is None and got["differences"] == []
    assert "sampled" in comparison.format_report(got)


def test_a_close_call_is_told_from_a_fault(capsys, prompts):
    """Where two texts part, the report says by how much the model preferred its own token."""
    options = ["--prompts", prompts, *REPORTED]
    loaded = engine.Engine(run_sa_spec.parse_args(list(map(str, options))))
    plain, _ = loaded.generate(engine.Mode(False, 0), loaded.texts[:1])
    other = [engine.Result((*plain[0].tokens[:3], 17), 4, 0, 0)]
    loaded.texts = loaded.texts[:1]
    (found,) = comparison._differences(loaded, {"none": plain, "SA": other})
    assert (found["mode"], found["prompt"], found["token"]) == ("SA", 0, 3)
    assert found["logit_gap"] > 0
    assert capsys.readouterr().err == "differences: compiling\n"


def test_confirmed_drafts_are_highlighted():
    def decode(tokens):
        return bytes(tokens).decode("utf-8", errors="replace")

    euro = list("€".encode())
    writer = live_text.Writer(decode, colour=True)
    assert writer.write(list(b"abc")) == f"{live_text.HIGHLIGHT}ab{live_text.PLAIN}c"
    assert writer.write(list(b"d")) == "d"
    # A character waits until all its bytes are there.
    assert writer.write(euro[:2]) == ""
    assert writer.write(euro[2:]) == "€"
    plain = live_text.Writer(decode, colour=False)
    assert plain.write(list(b"abc")) == "abc"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "nowhere"], "nowhere: no such directory\n"),
        (
            ["--model", "Some/Model-1B"],
            "Some/Model-1B: no such directory; if it is a model of the H",
        ),
        (
            ["--model", "x.gguf"],
            "x.gguf: a GGUF file: `python examples/import_gguf.py x.gguf --out ",
        ),
        (["--prompts", "nothing.jsonl"], "nothing.jsonl: No such file or directory"),
        (["--prompt", ""], "argument --prompt: expected a text, got ''"),
        (
            ["--prompt", "a", "--prompts", "b"],
            "argument --prompts: not allowed with argument --prompt",
        ),
        (["--chat"], f"{BUNDLED / 'tokenizer_config.json'}: No such file or directory"),
        (
            ["--sa_spec_threshold", "0"],
            "argument --sa_spec_threshold: expected an int of 1 or more",
        ),
        (
            ["--num_nextn_predict_layers", "-1"],
            "argument --num_nextn_predict_layers: expected an int",
        ),
        (["--batch_size", "0"], "argument --batch_size: expected an int of 1 or more, got '0'"),
        (["--batch_size", str(2**31)], "argument --batch_size: expected an int"),
        (["--batch_size", "two"], "argument --batch_size: expected an int of 1 or more, got 'two'"),
        (["--max_draft", "0"], "argument --max_draft: expected an int of 1 or more"),
        (["--min_match", "0"], "argument --min_match: expected an int of 1 or more"),
        (["--draft_factor", "0"], "argument --draft_factor: expected a finite number above 0"),
        (["--temperature", "-1"], "argument --temperature: expected a finite number of 0 or more"),
        (["--temperature", "nan"], "argument --temperature: expected a finite number of 0 or more"),
        (["--top_k", "0"], "argument --top_k: expected an int of 1 or more"),
        (["--top_p", "1.5"], "argument --top_p: expected a number above 0, at most 1, got '1.5'"),
        (["--prompt_file", "x"], "unrecognized arguments: --prompt_file x"),
        (["--tp_size", "3"], "tp_size: expected a divisor of the model's 8 attention heads, got 3"),
        (["--tp_size", "1000"], "tp_size: expected at most the "),
        (["--max_new_tokens", "9000"], "--max_new_tokens: expected at most 9"),
        (
            ["--prompt", "x" * 4000],
            "prompts: expected at most 1023 tokens, because the model reads ",
        ),
    ],
)
def test_bad_options_are_one_line(capsys, prompts, options, message):
    if options == ["--tp_size", "3"] and len(jax.devices()) < 3:
        pytest.skip("3 devices needed")
    if "--prompt" not in options:
        options = ["--prompts", str(prompts), *options]
    assert run_sa_spec.main(options) == 2
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
        ("[" * 100_000, "1: expected "),
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
    short = ("--json", *map(str, REPORTED))
    for given in ([], ["--num_nextn_predict_layers", "2"]):
        assert run_sa_spec.main([*options, "--compare", *short, *given]) == 0
        captured = capsys.readouterr()
        assert list(json.loads(captured.out)["modes"]) == ["none", "SA"]
        assert ("no MTP module: comparing without" in captured.err) == bool(given)
    assert list(json.loads(run(capsys, *options, *short))["modes"]) == ["none"]


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


@pytest.mark.slow
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
    plain = written(capsys, prompts, "--model", out, "--num_nextn_predict_layers", 0)
    assert written(capsys, prompts, "--model", out, "--use_sa_spec") == plain


def test_the_bundled_instruct_prompts():
    entries = [json.loads(line) for line in INSTRUCT.read_text().splitlines()]
    groups = collections.Counter(entry["group"] for entry in entries)
    assert len(groups) == 9 and set(groups.values()) == {8}
    assert all(15 <= len(entry["prompt"].split()) <= 400 for entry in entries)
    assert len({entry["prompt"] for entry in entries}) == len(entries)


@pytest.mark.parametrize("script", [run_sa_spec, train_checkpoint])
def test_help(capsys, monkeypatch, script):
    monkeypatch.setattr(sys, "argv", [script.__file__])
    with pytest.raises(SystemExit) as stop:
        script.main(["--help"])
    assert stop.value.code == 0 and "usage:" in capsys.readouterr().out


def test_a_pool_that_holds_the_answer(tmp_path, capsys):
    options = ["--prompt", TEXTS["code"], *map(str, REPORTED), "--json", "--use_sa_spec"]
    options += ["--num_nextn_predict_layers", "0"]
    assert run_sa_spec.main(options) == 0
    alone = json.loads(capsys.readouterr().out)
    answer = alone["written"][0]["modes"]["SA"]["text"]
    text, pool = tmp_path / "text", tmp_path / "pool.npz"
    text.write_text(TEXTS["code"] + answer)
    build = ["pool", "build", text, "-o", pool, "--tokenizer", BUNDLED / "tokenizer.json"]
    assert jax_sa_main(list(map(str, build))) == 0
    capsys.readouterr()
    assert run_sa_spec.main([*options, "--pool", str(pool)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["written"] == alone["written"]
    steps = [each["modes"]["SA"]["tokens_per_step"] for each in (alone, report)]
    assert steps[1] > 1.5 * steps[0]


def test_a_pool_that_is_none(tmp_path, capsys):
    path = tmp_path / "none.npz"
    assert run_sa_spec.main(["--pool", str(path)]) == 2
    error = capsys.readouterr().err
    assert error == f"error: --pool: {path}: cannot be read: No such file or directory\n"
