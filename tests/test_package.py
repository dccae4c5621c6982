"""The names that a user imports, and the report of `info` on them."""

import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import pytest
from requirements import unavailable

import jax_sa
import jax_sa.__main__
from jax_sa import _targets
from jax_sa.cli import info

PUBLIC = {
    *(
        "State",
        "ScanState",
        "Status",
        "Invalid",
        "init",
        "get_state_size",
        "save",
        "load",
        "validate",
    ),
    *("extend", "lookup", "lookup_after", "extend_lookup", "reset", "copy_slots"),
    *("Draft", "DRAFT_FILL"),
    *("read_tokens", "build_on_host", "insert"),
    *("Pool", "init_pool", "get_pool_size", "insert_slots", "Source"),
    *("SEPARATOR", "NGRAM_LENGTHS", "MAX_POOL_MATCH"),
    *("DraftTree", "ROOT", "lookup_tree", "extend_lookup_tree", "tree_mask"),
    *("Followers", "init_followers", "note_followers", "NUM_FOLLOWERS"),
    *("accept_tree_greedy", "accept_tree_sampled", "TreeBlock", "move_entries"),
    *("accept_greedy", "accept_sampled", "Accepted", "Sampling", "merge_drafts", "join_drafts"),
    *("share_budget", "pack", "Packed"),
    *("generate", "Generation", "Decoder", "NeuralDrafter", "Calibration", "pad_prompts"),
    *("check_model", "ModelCheck", "Clause", "KVCache", "from_forward", "from_whole_pass"),
    *("PackedDecoder", "Completions", "Rows", "Step"),
    *("SAConfig", "SuffixAutomatonManager"),
    *("inspect_slot", "Automaton"),
    *("expand_seqlens", "ExpandedSeqlens"),
    *("fused_copy", "copy_replay_metadata", "Copied", "ReplayMetadata"),
    "cache_schema",
}


def test_the_public_names_are_listed_and_documented():
    exported = set(re.findall(r"import (\w+) as \1\n", pathlib.Path(jax_sa.__file__).read_text()))
    assert exported == PUBLIC
    constants = {"DRAFT_FILL", "ROOT", "SEPARATOR", "NGRAM_LENGTHS", "MAX_POOL_MATCH"}
    constants |= {"NUM_FOLLOWERS"}
    for name in PUBLIC - constants:
        assert getattr(jax_sa, name).__doc__


def test_tells_type_checkers_of_its_types():
    assert (pathlib.Path(jax_sa.__file__).parent / "py.typed").is_file()


def test_installed_from_elsewhere():
    """The suite tests the installed package, not the checkout."""
    assert pathlib.Path(jax_sa.__file__).parents[1] != pathlib.Path(__file__).parents[1]


def test_xla_is_told_of_no_line_of_the_package():
    lowered = jax.jit(lambda: jax_sa.lookup(jax_sa.init(1, 8), max_draft=2)).lower()
    text = lowered.as_text(debug_info=True)
    assert __file__ in text
    assert str(pathlib.Path(jax_sa.__file__).parent) not in text


def test_works_from_within_the_checkout():
    """There, `python -m` finds the checkout's folder first, which has no handlers."""
    checkout = pathlib.Path(__file__).parents[1]
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    command = [sys.executable, "-m", "jax_sa", "info", "--json"]
    result = subprocess.run(
        command, cwd=checkout, env=environment, check=True, capture_output=True, text=True
    )
    assert json.loads(result.stdout)["handlers"]["cpu"]["problem"] is None


def test_works_without_handlers():
    """As from a checkout that was not built, or where jaxlib is too old for them."""
    program = """
import sys
sys.modules["jax_sa._cpu"] = sys.modules["jax_sa._cuda"] = None
import jax.numpy as jnp
import jax_sa
state = jax_sa.init(1, 8, index="auto")
tokens, lengths = jnp.array([[1, 2, 1]], jnp.int32), jnp.array([3], jnp.int32)
_, draft = jax_sa.extend_lookup(state, tokens, lengths, max_draft=2)
assert draft.tokens.tolist() == [[2, 1]], draft
try:
    jax_sa.init(1, 8)
except ValueError as error:
    print(error)
"""
    command = [sys.executable, "-c", program]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True, cwd="/"
    )
    expected = 'index: expected "scan", which needs no handlers, got "automaton": on cpu, the '
    assert result.stdout.startswith(expected)


OPS = {
    *("extend", "lookup", "lookup_after", "extend_lookup", "reset", "copy_slots"),
    *("validate", "read_tokens", "insert", "pool_insert", "pool_insert_slots"),
    *("scan_extend", "scan_lookup", "scan_extend_lookup"),
    *("lookup_tree", "extend_lookup_tree", "note_followers"),
}


def test_cpu_handlers_are_usable():
    handlers = info.collect()["handlers"]["cpu"]
    assert handlers["problem"] is None
    assert set(handlers["built"]) >= OPS


def test_cuda_handlers_are_usable():
    if jax.default_backend() != "gpu":
        unavailable("JAX has no GPU here")
    handlers = info.collect()["handlers"]["CUDA"]
    assert handlers["problem"] is None
    assert set(handlers["built"]) >= OPS


def test_info(capsys):
    assert jax_sa.__main__.main(["info"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^cpu +usable \(.*extend_lookup", text, re.MULTILINE)
    assert jax_sa.__main__.main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["jax"] == jax.__version__


def test_handlers_that_are_too_new_are_not_registered():
    class Module:
        ffi_version = (0, 99)

    assert re.match(
        r"built for XLA FFI 0\.99, but jaxlib .* has 0\.\d+: reinstall jax_sa, or upgrade jaxlib$",
        _targets._version_problem(Module),
    )


def test_an_ffi_older_than_supported_needs_an_upgrade(monkeypatch):
    class Module:
        ffi_version = _targets._OLDEST_FFI_VERSION

    monkeypatch.setattr(_targets, "_runtime_ffi_version", lambda: (0, 2))
    assert re.match(
        r"built for XLA FFI 0\.3, but jaxlib .* has 0\.2: upgrade jaxlib$",
        _targets._version_problem(Module),
    )


def test_commands_have_help(capsys):
    for command in ("info", "replay", "pool", "plan"):
        with pytest.raises(SystemExit) as stop:
            jax_sa.__main__.main([command, "--help"])
        assert stop.value.code == 0
        assert command in capsys.readouterr().out
