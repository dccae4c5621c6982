"""The command `plan`: its table, its JSON, and one clear line for bad input."""

import argparse
import json

import pytest
from test_cache_schema_config import hf_dict

from jax_sa.cache_schema import CacheLayout, dsv4_flash, dsv4_pro, max_context, max_requests, plan
from jax_sa.cli.plan import add_parser, parse_size

EXAMPLE = "--model pro --context 131072 --requests 64 --hbm 141GB"


@pytest.fixture
def run(capsys):
    """Runs the command with a line of arguments and gives what it printed."""

    def run_line(line, *more):
        parser = argparse.ArgumentParser()
        add_parser(parser.add_subparsers())
        args = parser.parse_args(["plan", *line.split(), *more])
        assert args.run(args) == 0
        return capsys.readouterr().out

    return run_line


def test_json_is_the_plan(run):
    got = json.loads(run(EXAMPLE + " --kv fp8 --indexer fp4 --weights 8GB --json"))
    load = {"context_tokens": 131072, "requests": 64}
    made = plan(dsv4_pro(), 141 * 10**9, 8 * 10**9, **load, layout=CacheLayout("fp8", "fp4"))
    assert got["device_bytes"] == made.device_bytes
    assert got["free_bytes"] == made.free_bytes
    assert got["fits"] is True
    parts = got["stages"][0]["parts"]
    assert sum(part["bytes"] for part in parts.values()) == made.stages[0].cache_bytes


def test_table_has_every_part_and_the_answers(run):
    text = run(EXAMPLE)
    made = plan(dsv4_pro(), 141 * 10**9, context_tokens=131072, requests=64)
    for part in made.stages[0].parts:
        assert f"{part.bytes:,}" in text
    assert f"{made.stages[0].automaton_bytes:,}" in text
    assert f"{made.device_bytes:,}" in text
    most = max_requests(dsv4_pro(), 141 * 10**9, context_tokens=131072)
    longest = max_context(dsv4_pro(), 141 * 10**9, requests=64)
    assert f"\nmost requests of 131,072 tokens: {most:,}\n" in text
    assert f"\nlongest context with 64 at once: {longest:,} tokens\n" in text


def test_what_is_left_out_is_searched(run):
    got = json.loads(run("--model flash --context 1000 --hbm 80GiB --json"))
    assert got["requests"] == max_requests(dsv4_flash(), 80 * 2**30, context_tokens=1000)
    got = json.loads(run("--model flash --requests 9 --hbm 2GiB --json"))
    assert got["context_tokens"] == max_context(dsv4_flash(), 2 * 2**30, requests=9)


def test_what_does_not_fit_tells_what_is_missing(run):
    text = run("--model flash --context 1000 --hbm 1MB")
    assert "does not fit" in text
    assert "missing" in text
    assert json.loads(run("--model flash --requests 1 --hbm 1MB --json"))["fits"] is False


def test_options_reach_the_plan(run):
    options = (
        " --block-size 256 --page-alignment 576 --headroom 0.1 --no-speculative --mtp"
        " --tensor-parallel 2 --pipeline-stages 3 --data-parallel 4 --weights 1.5GiB --json"
    )
    got = json.loads(run(EXAMPLE + options))
    made = plan(
        dsv4_pro(),
        141 * 10**9,
        3 * 2**29,
        context_tokens=131072,
        requests=64,
        layout=CacheLayout(block_multiple=2, page_alignment=576),
        headroom=0.1,
        speculative=False,
        mtp=True,
        tensor_parallel=2,
        pipeline_stages=3,
        data_parallel=4,
    )
    assert [stage["total_bytes"] for stage in got["stages"]] == [
        stage.total_bytes for stage in made.stages
    ]
    assert (got["num_pages"], got["num_slots"]) == (made.num_pages, made.num_slots)


def test_hf_config(run, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(hf_dict()))
    rest = " --context 1000 --requests 2 --hbm 80GB"
    assert run("--hf-config", str(path), *rest.split()) == run("--model flash" + rest)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1024", 1024),
        ("1B", 1),
        ("1KB", 1000),
        ("1KiB", 1024),
        ("141GB", 141 * 10**9),
        ("80GiB", 80 * 2**30),
        ("1.5 TiB", 3 * 2**39),
        ("0.1GB", 10**8),
    ],
)
def test_sizes(text, size):
    assert parse_size("hbm", text) == size


@pytest.mark.parametrize("text", ["", "GB", "141XB", "-1GB", "1.5", "0.0001KB", "1e9", "nan"])
def test_invalid_sizes(text):
    with pytest.raises(ValueError, match=f"^hbm: expected whole bytes .* got '{text}'$"):
        parse_size("hbm", text)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--model pro --hbm 1GB", "context: expected --context, --requests or both"),
        ("--model pro --hbm 1X --context 1", "hbm: "),
        ("--model pro --hbm 0 --context 1", "hbm: "),
        ("--model pro --hbm 1GB --weights x --context 1", "weights: "),
        ("--model pro --hbm 1GB --context 0", "context_tokens: "),
        ("--model pro --hbm 1GB --context 1048577", "context_tokens: "),
        ("--model pro --hbm 1GB --requests 0", "requests: "),
        ("--model pro --hbm 1GB --requests 1 --headroom nan", "headroom: "),
        ("--model pro --hbm 1GB --requests 1 --headroom -1", "headroom: "),
        ("--model pro --hbm 1GB --requests 1 --block-size 130", "block_size: "),
        ("--model pro --hbm 1GB --requests 1 --page-alignment 0", "page_alignment: "),
        ("--model pro --hbm 1GB --requests 1 --pipeline-stages 62", "pipeline_stages: "),
        ("--model pro --hbm 1GB --requests 1 --tensor-parallel 0", "tensor_parallel: "),
        ("--hf-config /no/such/file --hbm 1GB --requests 1", "hf-config: "),
    ],
)
def test_bad_input_is_one_clear_line(run, line, message):
    with pytest.raises(ValueError, match=f"^{message}") as error:
        run(line)
    assert "\n" not in str(error.value)
