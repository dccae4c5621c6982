"""The command `plan`: bytes of caches by part, and what fits, as a table or JSON."""

import argparse
import dataclasses
import json
import re
from fractions import Fraction
from typing import Any

from jax_sa.cache_schema.config import DSV4Config, dsv4_flash, dsv4_pro
from jax_sa.cache_schema.hf_config import from_hf
from jax_sa.cache_schema.layout import INDEXER_ENTRIES, KV_ENTRIES, CacheLayout
from jax_sa.cache_schema.planner import CachePlan, max_context, max_requests, plan
from jax_sa.cache_schema.sizes import bytes_per_token, request_state_bytes
from jax_sa.cli.output import show
from jax_sa.cli.table import format_table

PRESETS = {"pro": dsv4_pro, "flash": dsv4_flash}

UNITS = {"": 1, "B": 1} | {
    prefix + suffix: base ** (power + 1)
    for suffix, base in (("B", 1000), ("iB", 1024))
    for power, prefix in enumerate("KMGT")
}

TITLES = {
    "csa_kv": "CSA KV pages",
    "csa_indexer": "CSA indexer pages",
    "hca_kv": "HCA KV pages",
    "swa_ring": "SWA rings",
    "csa_state": "CSA compressor state",
    "csa_indexer_state": "CSA indexer compressor state",
    "hca_state": "HCA compressor state",
    "block_table": "block table",
}

EPILOG = """\
Sizes are bytes, or a number and a unit: 141GB is 141 * 10^9 bytes, 80GiB is 80 * 2^30.
Leave out --requests for the most that fit, or --context for the longest that fits.

example: python -m jax_sa plan --model pro --context 131072 --requests 64 --hbm 141GB
"""


def add_parser(subparsers: Any) -> None:
    """Adds `plan` to the command line."""
    parser = subparsers.add_parser(
        "plan",
        help="plan DeepSeek-V4-style KV caches: bytes by part, and what fits",
        description="Plans DeepSeek-V4-style KV caches to the byte, and says what fits a device.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", choices=PRESETS, help="a DeepSeek-V4 model")
    model.add_argument("--hf-config", metavar="FILE", help="a Hugging Face config.json")
    option = parser.add_argument
    option("--hbm", metavar="SIZE", required=True, help="memory of one device")
    option("--context", metavar="TOKENS", type=int, help="tokens of a request")
    option("--requests", metavar="N", type=int, help="concurrent requests, over all replicas")
    option("--weights", metavar="SIZE", default="0", help="of one replica, split over its devices")
    option("--kv", choices=KV_ENTRIES, default="bf16", help="main KV entries (default bf16)")
    option("--indexer", choices=INDEXER_ENTRIES, default="bf16", help="its entries (default bf16)")
    option("--block-size", metavar="TOKENS", type=int, help="a multiple of both ratios (the least)")
    option(
        "--page-alignment", metavar="BYTES", type=int, default=1, help="pad pages, such as to 576"
    )
    option(
        "--headroom",
        metavar="FRACTION",
        type=float,
        default=0,
        help="of blocks and slots to add (0: every request is counted at its full context)",
    )
    option(
        "--speculative",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="double the compressor state and include the suffix automaton (default yes)",
    )
    option("--mtp", action="store_true", help="include the MTP layers")
    option("--tensor-parallel", metavar="N", type=int, default=1, help="devices with the same KV")
    option("--pipeline-stages", metavar="N", type=int, default=1, help="slices of the layers")
    option("--data-parallel", metavar="N", type=int, default=1, help="replicas of the model")
    option("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs `plan`; ValueError or TypeError for bad input."""
    if args.context is None and args.requests is None:
        raise ValueError("context: expected --context, --requests or both, got neither")
    config = _read_config(args)
    model = (config, parse_size("hbm", args.hbm), parse_size("weights", args.weights))
    block_size = config.block_size() if args.block_size is None else args.block_size
    multiple = config.block_multiple(block_size)
    options = {
        "layout": CacheLayout(args.kv, args.indexer, multiple, args.page_alignment),
        "headroom": args.headroom,
        "speculative": args.speculative,
        "mtp": args.mtp,
        "tensor_parallel": args.tensor_parallel,
        "pipeline_stages": args.pipeline_stages,
        "data_parallel": args.data_parallel,
    }
    context, requests = args.context, args.requests
    # Where not even 1 fits, the plan of 1 shows what is missing.
    if requests is None:
        requests = max_requests(*model, context_tokens=context, **options) or 1
    if context is None:
        context = max_context(*model, requests=requests, **options) or 1
    made = plan(*model, context_tokens=context, requests=requests, **options)
    answer = {
        "max_requests": max_requests(*model, context_tokens=context, **options),
        "max_context_tokens": max_context(*model, requests=requests, **options),
    }
    show(json.dumps(_as_json(made) | answer, indent=2) if args.json else _as_text(made, **answer))
    return 0


def parse_size(name: str, text: str) -> int:
    """Bytes in a size such as "141GB" (10^9), "80GiB" (2^30), "1.5 TiB" or "1024"."""
    # No size has more digits than these, and Python refuses to read thousands.
    match = re.fullmatch(r"(\d{1,30}(?:\.\d{1,30})?)\s*([A-Za-z]*)", text.strip(), re.ASCII)
    size = Fraction(match[1]) * UNITS[match[2]] if match and match[2] in UNITS else None
    if size is None or size.denominator != 1:
        raise ValueError(f"{name}: expected whole bytes such as 141GB or 80GiB, got {text!r}")
    return int(size)


def _read_config(args: argparse.Namespace) -> DSV4Config:
    if args.model:
        return PRESETS[args.model]()
    try:
        return from_hf(args.hf_config)
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"hf-config: {args.hf_config}: cannot be read: {reason}") from None


def _as_json(made: CachePlan) -> dict[str, Any]:
    return {
        "layout": dataclasses.asdict(made.layout),
        "speculative": made.speculative,
        "mtp": made.mtp,
        "context_tokens": made.context_tokens,
        "requests": made.requests,
        "fits": made.fits,
        "hbm_bytes": made.hbm_bytes,
        "device_bytes": made.device_bytes,
        "free_bytes": made.free_bytes,
        "bytes_per_token": float(_bytes_per_token(made)),
        "request_state_bytes": _request_state_bytes(made),
        "block_size": made.block_size,
        "blocks_per_request": made.blocks_per_request,
        "num_pages": made.num_pages,
        "num_slots": made.num_slots,
        "fullest_stage": made.fullest_stage,
        "stages": [
            {
                "layers": len(stage.schedule),
                "weights_bytes": stage.weights_bytes,
                "automaton_bytes": stage.automaton_bytes,
                "cache_bytes": stage.cache_bytes,
                "total_bytes": stage.total_bytes,
                "parts": {
                    part.name: {"bytes": part.bytes, "waste_bytes": part.waste_bytes}
                    for part in stage.parts
                },
            }
            for stage in made.stages
        ],
    }


def _bytes_per_token(made: CachePlan) -> Fraction:
    return bytes_per_token(made.config, made.layout, mtp=made.mtp)


def _request_state_bytes(made: CachePlan) -> int:
    return request_state_bytes(made.config, made.layout, speculative=made.speculative, mtp=made.mtp)


def _as_text(made: CachePlan, max_requests: int, max_context_tokens: int) -> str:
    """The table of the fullest device, then the answers."""
    stage = made.stages[made.fullest_stage]
    rows = [
        ("weights", stage.weights_bytes, 0),
        *((TITLES[part.name], part.bytes, part.waste_bytes) for part in stage.parts),
        ("suffix automaton", stage.automaton_bytes, 0),
        ("total", stage.total_bytes, sum(part.waste_bytes for part in stage.parts)),
        ("device", made.hbm_bytes, 0),
        ("free" if made.fits else "missing", abs(made.free_bytes), 0),
    ]
    table = format_table(
        ("part", "bytes", "GiB", "of it padding"),
        [(name, f"{size:,}", f"{size / 2**30:.3f}", f"{waste:,}") for name, size, waste in rows],
    )
    return "\n".join(
        [
            f"model: {float(_bytes_per_token(made)):,} bytes per token, and "
            f"{_request_state_bytes(made):,} per request",
            f"load: {made.requests:,} requests of {made.context_tokens:,} tokens",
            f"replica: {made.num_slots:,} slots, {made.num_pages:,} pages of {made.block_size} "
            "tokens",
            f"fullest device: stage {made.fullest_stage + 1} of {len(made.stages)}, "
            f"{len(stage.schedule)} layers",
            "",
            table,
            "",
            "fits" if made.fits else "does not fit",
            f"most requests of {made.context_tokens:,} tokens: {max_requests:,}",
            f"longest context with {made.requests:,} at once: {max_context_tokens:,} tokens",
        ]
    )
