"""Every command: help, one line for whatever goes wrong, and results that reach their file."""

import io
import json
import os
import re
import stat
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest

import jax_sa.__main__
from jax_sa import traces
from jax_sa.cli import devices
from jax_sa.cli.output import printable
from jax_sa.cli.table import format_table

PLAN = ["plan", "--model", "flash", "--hbm", "141GB", "--context", "1000"]
DEEP = "[" * 200_000 + "]" * 200_000


def write_traces(path, **fields):
    path.write_text(json.dumps({"prompt": [1, 2], "response": [1, 2, 1]} | fields))
    return path


def write_npz(path, **changes):
    fields = {
        "tokens": np.arange(4),
        "offsets": np.array([0, 4]),
        "prompt_lengths": np.ones(1, int),
    }
    np.savez(path, **fields | changes)
    return path


@pytest.fixture
def error_of(capsys):
    """Runs a command that must fail, and gives the only line that it prints."""

    def run(*arguments):
        assert jax_sa.__main__.main(list(map(str, arguments))) == 2
        out, error = capsys.readouterr()
        assert out == "" and error.startswith("error: ") and error.count("\n") == 1, error
        assert error[:-1].isprintable()
        return error[len("error: ") : -1]

    return run


def start(arguments, **options):
    """Runs a command in a process of its own."""
    # This process may have the GPU's memory.
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | options.pop("env", {})
    command = [sys.executable, "-m", "jax_sa", *map(str, arguments)]
    return subprocess.run(
        command, check=False, stderr=subprocess.PIPE, text=True, env=environment, **options
    )


COMMANDS = [["info"], ["info", "--json"], ["replay", "--limit", "1"], PLAN, [*PLAN, "--json"]]


def commands_and_outputs():
    """Each command with one output that fails; with the other, slow."""
    for number, arguments in enumerate(COMMANDS):
        for output in ("closed pipe", "full disk"):
            marks = () if number % 2 == (output == "full disk") else pytest.mark.slow
            name = f"{output}-{' '.join(arguments)}"
            yield pytest.param(arguments, output, id=name, marks=marks)


@pytest.mark.parametrize(("arguments", "output"), list(commands_and_outputs()))
def test_results_that_cannot_be_printed(arguments, output):
    if output == "closed pipe":
        reader, writer = os.pipe()
        os.close(reader)
    else:
        writer = os.open("/dev/full", os.O_WRONLY)
    done = start(arguments, stdout=writer)
    os.close(writer)
    assert done.returncode == 2
    reason = {"closed pipe": "Broken pipe", "full disk": "No space left on device"}[output]
    assert done.stderr == f"error: standard output: {reason}\n"


def test_no_standard_output_at_all(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert jax_sa.__main__.main(PLAN) == 2
    assert capsys.readouterr().err == "error: standard output: closed\n"


def test_no_standard_error_at_all(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    assert jax_sa.__main__.main(["replay", "--limit", "1"]) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize("command", ["info", "replay"])
def test_a_platform_that_is_not_there(command):
    done = start([command], env={"JAX_PLATFORMS": "nowhere"}, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: JAX_PLATFORMS: expected platforms that JAX can use here")
    assert "got 'nowhere': " in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="JAX has a GPU here")
@pytest.mark.parametrize("command", ["info", "replay"])
def test_a_gpu_that_is_not_there(command):
    done = start([command], env={"JAX_PLATFORMS": "cuda"}, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (2, "")
    last = done.stderr.splitlines()[-1]  # JAX may log that a plugin of its own does not load
    assert last.startswith("error: JAX_PLATFORMS: ") and "got 'cuda'" in last
    assert "jax_sa" not in done.stderr  # no traceback through this package


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("no\nGPU")])
def test_whatever_jax_raises_as_it_starts_is_one_line(monkeypatch, error_of, error):
    def fail():
        raise error

    monkeypatch.setattr(devices.jax, "devices", fail)
    platforms = repr(jax.config.jax_platforms)
    assert error_of("info").endswith(f"got {platforms}" + (": no" if str(error) else ""))


def test_out_of_memory_is_one_line(monkeypatch, error_of):
    def fail(*args, **kwargs):
        raise errors.pop()

    errors = [MemoryError("10 TiB"), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9\nmore")]
    monkeypatch.setattr(jax_sa.cli.replay, "replay_traces", fail)
    assert error_of("replay", "--limit", 1) == "RESOURCE_EXHAUSTED: 9"
    assert error_of("replay", "--limit", 1) == "not enough memory: 10 TiB"


def test_the_json_file_is_opened_before_the_work(tmp_path, error_of, monkeypatch):
    def work(*args, **kwargs):
        raise AssertionError("the work was begun")

    monkeypatch.setattr(jax_sa.cli.replay, "_load_traces", work)
    for path, reason in (
        (tmp_path, "Is a directory"),
        (tmp_path / "none" / "x.json", "No such file or directory"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        error = error_of("replay", "--json", path)
        assert error == f"--json: {path}: cannot be written: {reason}"


def test_the_json_file_is_written_before_anything_is_printed(tmp_path, error_of):
    traces_path = write_traces(tmp_path / "t.jsonl")
    assert "No space left" in error_of("replay", traces_path, "--json", "/dev/full")
    path = tmp_path / "out.json"
    with open("/dev/full", "w") as full:
        done = start(["replay", traces_path, "--json", path], stdout=full)
    assert done.returncode == 2
    assert json.loads(path.read_text())["traces"][0]["id"] == "0"


def test_what_fails_leaves_the_json_file_as_it_was(tmp_path, error_of):
    path = tmp_path / "out.json"
    error_of("replay", "none.npz", "--json", path)
    assert not path.exists()
    path.write_text("before")
    error_of("replay", "none.npz", "--json", path)
    assert path.read_text() == "before"


def test_a_longer_json_file_is_replaced(tmp_path, capsys):
    path = tmp_path / "out.json"
    path.write_text("x" * 100_000)
    traces_path = write_traces(tmp_path / "t.jsonl")
    assert jax_sa.__main__.main(["replay", str(traces_path), "--json", str(path)]) == 0
    assert set(json.loads(path.read_text())) == {"options", "categories", "traces"}
    assert stat.S_IMODE(path.stat().st_mode) & 0o111 == 0


def test_fifos(tmp_path, error_of):
    """Nobody is at the other end: opened as they are, they would be waited for."""
    for name in ("t.jsonl", "t.npz", "config.json", "tokenizer.json", "out.json"):
        os.mkfifo(tmp_path / name)
    for name in ("t.jsonl", "t.npz"):
        assert error_of("replay", tmp_path / name).endswith("cannot be read: not a regular file")
    plan = ["plan", "--hbm", "1GB", "--requests", "1", "--hf-config"]
    assert "not a regular file" in error_of(*plan, tmp_path / "config.json")
    assert "No such device" in error_of("replay", "--json", tmp_path / "out.json")
    pytest.importorskip("tokenizers")
    text = write_traces(tmp_path / "x.jsonl", prompt="a")
    error = error_of("replay", text, "--tokenizer", tmp_path / "tokenizer.json")
    assert error.startswith("--tokenizer: ") and error.endswith("not a regular file")


def test_a_fifo_with_a_reader_takes_the_json(tmp_path, capsys):
    path, traces_path = tmp_path / "out.json", write_traces(tmp_path / "t.jsonl")
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    assert jax_sa.__main__.main(["replay", str(traces_path), "--json", str(path)]) == 0
    assert json.loads(os.read(reader, 2**16))["options"]["max_draft"] == 8
    os.close(reader)


def test_json_that_is_nested_too_deeply(tmp_path, error_of):
    (tmp_path / "t.jsonl").write_text(DEEP)
    assert error_of("replay", tmp_path / "t.jsonl").endswith("line 1: not JSON: nested too deeply")
    (tmp_path / "config.json").write_text(DEEP)
    plan = ["plan", "--hbm", "1GB", "--requests", "1", "--hf-config"]
    assert error_of(*plan, tmp_path / "config.json").endswith("got nested too deeply")


@pytest.mark.parametrize("depth", [10, 900, 990, 2_000, 5_000, 9_000, 40_000, 99_000])
def test_json_of_any_depth(tmp_path, error_of, depth):
    """What can be read can be shown in the error."""
    nested = "[" * depth + "]" * depth
    (tmp_path / "t.jsonl").write_text(f'{{"prompt": {nested}, "response": [1]}}')
    assert error_of("replay", tmp_path / "t.jsonl")
    text = json.dumps(CONFIG | {"head_dim": "HERE"}).replace('"HERE"', nested)
    (tmp_path / "config.json").write_text(text)
    plan = ["plan", "--hbm", "1GB", "--requests", "1", "--hf-config"]
    assert error_of(*plan, tmp_path / "config.json")


@pytest.mark.parametrize(
    "number", ["1e400", "-1e400", "NaN", "1" + "0" * 400, "1" + "0" * 5000, "1e-400"]
)
def test_absurd_numbers_in_files(tmp_path, error_of, number):
    path = tmp_path / "t.jsonl"
    path.write_text(f'{{"prompt": [{number}], "response": [1]}}')
    assert "line 1" in error_of("replay", path)
    config = tmp_path / "config.json"
    plan = ["plan", "--hbm", "1GB", "--requests", "1", "--hf-config", config]
    for name in ("head_dim", "num_hidden_layers", "partial_rotary_factor"):
        config.write_text(json.dumps(CONFIG | {name: "HERE"}).replace('"HERE"', number))
        error = error_of(*plan)
        assert re.match(f"{name}: |qk_rope_head_dim: |{config}: expected JSON", error)


CONFIG = {
    "num_hidden_layers": 3,
    "compress_ratios": [0, 4, 128],
    "head_dim": 512,
    "partial_rotary_factor": 0.125,
    "index_head_dim": 128,
    "sliding_window": 128,
    "max_position_embeddings": 4096,
}


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("--draft-factor=1e400", "draft_factor"),
        ("--draft-factor=-1e400", "draft_factor"),
        ("--draft-factor=nan", "draft_factor"),
        ("--max-draft=2147483647", "max_draft"),
        ("--max-draft=" + "9" * 400, "max_draft"),
        ("--max-match=" + "9" * 400, "max_match"),
        ("--slots=" + "9" * 400, "--slots"),
        ("--limit=" + "9" * 400, "--limit"),
    ],
)
def test_absurd_options_of_replay(error_of, option, name):
    assert error_of("replay", "--limit=1", option).startswith(f"{name}: expected ")


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("--headroom=1e400", "headroom"),
        ("--headroom=1e300", "headroom"),
        ("--headroom=nan", "headroom"),
        ("--weights=" + "9" * 5000, "weights"),
        ("--weights=" + "9" * 400 + "TiB", "weights"),
        ("--weights=0." + "1" * 5000, "weights"),
        ("--hbm=" + "9" * 400, "hbm"),
        ("--requests=" + "9" * 400, "requests"),
        ("--context=" + "9" * 400, "context_tokens"),
        ("--page-alignment=" + "9" * 400, "page_alignment"),
        ("--tensor-parallel=" + "9" * 400, "tensor_parallel"),
        ("--data-parallel=" + "9" * 400, "data_parallel"),
    ],
    ids=lambda value: value[:30],
)
def test_absurd_options_of_plan(error_of, option, name):
    assert error_of(*PLAN, "--requests", 1, option).startswith(name)


@pytest.mark.parametrize("json_option", [[], ["--json"]])
def test_the_largest_options_of_plan(capsys, json_option):
    largest = str(2**31 - 1)
    options = ["--context=1048576", f"--headroom={largest}", f"--requests={largest}"]
    options += [f"--page-alignment={largest}", f"--hbm={2**63 - 1}", *json_option]
    assert jax_sa.__main__.main([*PLAN, *options]) == 0
    assert "inf" not in capsys.readouterr().out


def replaced_member(path, name, content):
    """An .npz file of which one member holds something else."""
    with zipfile.ZipFile(write_npz(path)) as file:
        members = {member: file.read(member) for member in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for member, old in (members | {name: content}).items():
            file.writestr(member, old)
    return path


def npy(header):
    header = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        npy("{'descr': '<i8', 'fortran_order': False, 'shape': (4,), }"),
        npy("{'descr': '<i8', 'fortran_order': False, 'shape': (10**15,), }"),
        npy("{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000000,), }"),
        npy("{'descr': '<i8', 'fortran_order': False, 'shape': (-4,), }"),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (4,), }"),
        npy("{'descr': ((,"),
        npy(DEEP[:1000]),
    ],
)
def test_broken_members(tmp_path, error_of, content):
    error = error_of("replay", replaced_member(tmp_path / "t.npz", "tokens.npy", content))
    assert str(tmp_path / "t.npz") in error


def test_damaged_bytes(tmp_path, error_of):
    """Whichever byte is damaged, the file is read or there is one line."""
    path = tmp_path / "t.npz"
    fields = {
        "tokens": np.arange(4),
        "offsets": np.array([0, 4]),
        "prompt_lengths": np.ones(1, int),
    }
    np.savez_compressed(path, **fields)
    whole = path.read_bytes()
    failed = 0
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            traces.load(path)
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            failed += 1
    assert failed > 100
    path.write_bytes(whole[: len(whole) // 2])
    assert "not a readable .npz file" in error_of("replay", path)
    np.save(tmp_path / "one.npy", np.arange(3))
    (tmp_path / "one.npy").rename(path)
    assert "not a readable .npz file: it holds a single array" in error_of("replay", path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"category": np.array("x")}, r"field category: expected 1 entries, got <U1[]"),
        ({"id": np.array([["a"]])}, r"field id: expected 1 entries, got <U1[1, 1]"),
        ({"tokens": np.array(4)}, "field tokens: expected a list of integers, got int64[]"),
        (
            {"offsets": np.array([0, 9, 4], np.uint64), "prompt_lengths": np.ones(2, int)},
            "field offsets: expected ascending indices",
        ),
        ({"tokens": np.array([2**63, 1, 2, 3], np.uint64)}, "field tokens: expected int32 values"),
    ],
)
def test_arrays_of_a_wrong_shape_or_range(tmp_path, error_of, changes, message):
    assert message in error_of("replay", write_npz(tmp_path / "t.npz", **changes))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"category": ["x"]}, "line 1: field category: expected text or a number, got list"),
        ({"id": None}, "line 1: field id: expected text or a number, got NoneType"),
        ({"prompt": "\ud800"}, "line 1: field prompt: cannot be encoded"),
    ],
)
def test_fields_of_a_wrong_kind(tmp_path, error_of, fields, message):
    assert message in error_of("replay", write_traces(tmp_path / "t.jsonl", **fields))


CONTROLS = "\x1b[31mred\x07\n\t\r\x9b\u202e\ud800é"


def test_control_characters_are_escaped(tmp_path, capsys, error_of):
    path = write_traces(tmp_path / "t.jsonl", category=CONTROLS)
    assert jax_sa.__main__.main(["replay", str(path)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 3 and all(map(str.isprintable, shown))
    assert shown[2].startswith(r"\x1b[31mred\x07\n... ")
    assert r"\x1b[31m.npz: cannot be read" in error_of("replay", tmp_path / "\x1b[31m.npz")
    (row,) = format_table(["a"], [[CONTROLS]]).splitlines()[2:]
    assert row == r"\x1b[31mred\x07\n\t\r\x9b\u202e\ud800é"


def test_escapes_leave_what_is_printable():
    assert printable("né 日本 \\x1b") == "né 日本 \\x1b"


def test_characters_that_the_terminal_lacks(tmp_path):
    path = write_traces(tmp_path / "t.jsonl", category="né")
    done = start(["replay", path], env={"PYTHONIOENCODING": "ascii"}, stdout=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[2].startswith(r"n\xe9 ")


def test_progress_is_for_terminals(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    write_traces(tmp_path / "t.jsonl")
    for stderr, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stderr)
        assert jax_sa.__main__.main(["replay", str(tmp_path / "t.jsonl")]) == 0
        assert ("1/1 texts\n" in stderr.getvalue()) == shown
