"""The benchmarks start, and the one that profiles finds what it looks for."""

import json
import pathlib
import re
import subprocess
import sys
import types

import pytest
import several_commands

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"
COMMANDS = sorted(path for path in BENCHMARKS.glob("*.py") if "__main__" in path.read_text())


def run(*arguments):
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False
    )


def run_together(commands):
    """The same for each of several commands, in one process."""
    done = subprocess.run(
        [sys.executable, several_commands.__file__],
        input=json.dumps([list(map(str, command)) for command in commands]),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [types.SimpleNamespace(**result) for result in json.loads(done.stdout)]


@pytest.fixture(scope="module")
def helps():
    results = run_together([path, "--help"] for path in COMMANDS)
    return dict(zip(COMMANDS, results, strict=True))


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.name)
def test_help(helps, path):
    done = helps[path]
    assert done.returncode == 0, done.stderr
    assert "--json" in done.stdout


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.name)
def test_only_public_names(path):
    assert not re.search(r"\bjax_sa(\.\w+)*(\._\w| import _)", path.read_text())


BAD = {
    "append": "--runs",
    "decode_step": "--slots",
    "dispatch": "--slots",
    "fused_copy": "--steps",
    "peer_suffix": "--steps",
    "pool_insert": "--runs",
    "seqlens": "--repeats",
    "tree_step": "--steps",
    "weak_scaling": "--slots",
}


def bad_commands():
    """Commands that fail before any work is done, and what each says."""
    for name, option in (BAD | {"share": "--batch_sizes"}).items():
        for wrong, value, message in (
            (option, "0", "expected at least 1, got 0"),
            (option, "x", "invalid positive value: 'x'"),
            ("--json", "nowhere/x.json", "cannot be written: No such file or directory"),
        ):
            yield [BENCHMARKS / f"{name}.py", wrong, value], message


def test_bad_input_is_one_line():
    commands, messages = zip(*bad_commands(), strict=True)
    for done, message in zip(run_together(commands), messages, strict=True):
        assert done.returncode == 2 and message in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("value", ["7", "0", "-1"])
def test_too_few_tokens_to_measure_costs_with_are_one_line(value):
    done = run(BENCHMARKS / "real_model.py", "--max_new_tokens", value)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    expected = f"argument --max_new_tokens: expected at least 8, got {value}"
    assert done.stderr.splitlines()[-1].endswith(expected)


def test_followers_without_trees_are_one_line():
    done = run(BENCHMARKS / "real_model.py", "--followers")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "argument --followers: expected --tree_nodes too" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_the_ranks_of_followers(tmp_path):
    pytest.importorskip(
        "tokenizers", reason="tokenizers is not installed; pip install jax_sa[tokenizer]"
    )
    out = tmp_path / "ranks.json"
    options = ("--batch_size", "8", "--max_new_tokens", "4", "--temperatures", "0", "--json", out)
    done = run(BENCHMARKS / "follower_ranks.py", *options)
    assert done.returncode == 0, done.stderr
    means = [row["mean, %"] for row in json.loads(out.read_text())["rows"]]
    assert len(means) == 8 and means[0] == max(means) > 10 and sum(means) <= 100


@pytest.mark.slow
def test_the_share_of_a_step(tmp_path):
    pytest.importorskip(
        "tokenizers", reason="tokenizers is not installed; pip install jax_sa[tokenizer]"
    )
    out = tmp_path / "share.json"
    options = ("--batch_sizes", "16", "--max_new_tokens", "4", "--json", out)
    done = run(BENCHMARKS / "share.py", *options)
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert [row["drafts"] for row in rows] == ["SA", "SA+MTP"]
    for row in rows:
        assert 0 < row["jax_sa_us"] < row["step_us"] and 0 < row["share_percent"] < 100
