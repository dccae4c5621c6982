"""`pool build` and `pool info`: the pool of given texts, and one line for whatever goes wrong."""

import json
import os
import re

import numpy as np
import pytest
from pool_reference import Group
from test_pool import assert_pool_equals

import jax_sa
import jax_sa.__main__


def run(*arguments):
    return jax_sa.__main__.main(["pool", *map(str, arguments)])


@pytest.fixture
def error_of(capsys):
    def run_and_fail(*arguments):
        assert run(*arguments) == 2
        out, error = capsys.readouterr()
        assert out == "" and error.startswith("error: ") and error.count("\n") == 1, error
        return error[len("error: ") : -1]

    return run_and_fail


@pytest.fixture
def files(tmp_path):
    """A text, nothing, and traces; and the texts in them."""
    (tmp_path / "a.txt").write_text("to be or not to be, that is it")
    (tmp_path / "empty").write_text("")
    lines = [{"prompt": "ab", "response": "abc"}, {"prompt": [300, 4], "response": [5]}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    texts = [[*b"to be or not to be, that is it"], [*b"ababc"], [300, 4, 5]]
    return [tmp_path / name for name in ("a.txt", "empty", "t.jsonl")], texts


def test_a_pool_of_files(files, tmp_path, capsys):
    paths, texts = files
    out = tmp_path / "pool.npz"
    assert run("build", *paths, "-o", out) == 0
    pool = jax_sa.load(out)
    assert pool.capacity == 41  # 38 tokens and 3 separators
    group = Group(41)
    for text in texts:
        group.insert([text])
    assert_pool_equals(pool, group)
    built = capsys.readouterr().out
    assert run("info", out) == 0
    assert capsys.readouterr().out == built
    lines = built.splitlines()
    assert lines[0] == f"{jax_sa.get_pool_size(41):,} bytes: 1 x 41 tokens"
    assert lines[2].split() == "group texts tokens index used status".split()
    assert re.match(r"0 +3 +38 +\d+% +0$", lines[4])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [*(path.name for path in paths), "pool.npz"]
    )


def test_too_many_texts_leave_the_last(files, tmp_path, capsys):
    paths, texts = files
    out = tmp_path / "pool.npz"
    out.write_text("replaced")
    assert run("build", *paths, "-o", out, "--capacity", 16, "--json") == 0
    group = Group(16)
    for text in texts:
        group.insert([text[-16:]])
    assert_pool_equals(jax_sa.load(out), group)
    facts = json.loads(capsys.readouterr().out)
    assert facts["capacity"] == 16 and facts["bytes"] == 264
    assert facts["groups"][0]["texts"] == 3 and facts["groups"][0]["tokens"] == 13
    assert run("info", out, "--json") == 0
    assert json.loads(capsys.readouterr().out) == facts


def test_groups_and_their_status(tmp_path, capsys):
    pool = jax_sa.init_pool(8, num_groups=2)
    rows = np.int32([[1, 2, 3], [1, 2, 3]])
    pool = jax_sa.insert(pool, rows, np.int32([2, 9]), groups=np.int32([1, 1]))
    jax_sa.save(tmp_path / "p", pool)
    assert run("info", tmp_path / "p", "--json") == 0
    first, second = json.loads(capsys.readouterr().out)["groups"]
    assert first == {"group": 0, "texts": 0, "tokens": 0, "index_used": "0%", "status": 0}
    assert (second["texts"], second["tokens"]) == (1, 2)
    assert second["status"] == jax_sa.Status.OUT_OF_RANGE


def test_a_tokenizer(tmp_path, capsys, error_of):
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.models.WordLevel({"a": 7, "b": 8, "?": 9}, unk_token="?")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "text").write_text("a b c a")
    out, option = tmp_path / "pool.npz", ["--tokenizer", tmp_path / "tokenizer.json"]
    assert run("build", tmp_path / "text", "-o", out, *option) == 0
    assert jax_sa.load(out).ring[0, :4].tolist() == [7, 8, 9, 7]
    capsys.readouterr()
    (tmp_path / "text").write_bytes(b"a \xff")
    error = error_of("build", tmp_path / "text", "-o", out, *option)
    assert error.endswith("text: expected UTF-8, got other bytes at 2")


def test_build_errors(files, tmp_path, error_of):
    (path, *_), out = files[0], tmp_path / "pool.npz"
    for changed, message in (
        ([tmp_path / "none", "-o", out], "none: cannot be read: No such file or directory"),
        ([tmp_path, "-o", out], "cannot be read: not a regular file"),
        ([path, "-o", out, "--capacity", 0], "--capacity: capacity: expected an int in [1,"),
        ([path, "-o", out, "--tokenizer", path], "--tokenizer: "),
        ([path, "-o", tmp_path], "--output: "),
        ([path, "-o", tmp_path / "x" / "y"], "y: cannot be written: No such file or directory"),
        ([tmp_path / "x.npz", "-o", out], "x.npz: cannot be read"),
    ):
        assert message in error_of("build", *changed)
    assert not out.exists()


def test_a_build_that_fails_leaves_the_pool_as_it_was(files, tmp_path, error_of):
    out = tmp_path / "pool.npz"
    out.write_text("before")
    error_of("build", tmp_path / "none", "-o", out)
    assert out.read_text() == "before"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_info_errors(files, tmp_path, error_of):
    jax_sa.save(tmp_path / "state", jax_sa.init(1, 4))
    os.mkfifo(tmp_path / "fifo")
    for name, message in (
        ("none", "cannot be read: No such file or directory"),
        ("a.txt", "expected a file that save wrote"),
        ("state", "expected a pool, got a state"),
        ("fifo", "cannot be read: not a regular file"),
    ):
        error = error_of("info", tmp_path / name)
        assert error.startswith(f"FILE: {tmp_path / name}: ") and message in error


@pytest.mark.parametrize("action", ["build", "info"])
def test_help(action, capsys):
    with pytest.raises(SystemExit) as stop:
        run(action, "--help")
    assert stop.value.code == 0 and "pool" in capsys.readouterr().out
