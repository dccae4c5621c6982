"""The benchmarks start, and the one that profiles finds what it looks for."""

import json
import pathlib
import subprocess
import sys

import pytest

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"
COMMANDS = sorted(path for path in BENCHMARKS.glob("*.py") if "__main__" in path.read_text())


def run(*arguments):
    return subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.name)
def test_help(path):
    done = run(path, "--help")
    assert done.returncode == 0, done.stderr
    assert "--json" in done.stdout


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
