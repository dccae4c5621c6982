"""The command `info`: what is installed, and what of it works here."""

import argparse
import importlib.metadata
import json
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib

from jax_sa import _targets
from jax_sa.automaton import extend_lookup
from jax_sa.cli.devices import start_jax
from jax_sa.cli.output import show
from jax_sa.state import init

_JAX_PLATFORM = {"cpu": "cpu", "CUDA": "gpu"}


def collect() -> dict[str, Any]:
    """Versions, devices, and for each platform its handlers and why they cannot be used, if so.

    Raises:
      ValueError: JAX cannot start.
    """
    return {
        "jax_sa": importlib.metadata.version("jax_sa"),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "devices": [
            f"{device.platform}:{device.id} {device.device_kind}" for device in start_jax()
        ],
        "handlers": {
            platform.name: {"built": list(platform.handlers), "problem": _problem(platform)}
            for platform in _targets.platforms()
        },
    }


def _problem(platform: _targets.Platform) -> str | None:
    """The reason why a platform's handlers cannot be used; None where they do a small job."""
    if platform.problem:
        return platform.problem
    try:
        device = jax.devices(_JAX_PLATFORM[platform.name])[0]
    except RuntimeError:
        return "JAX has no such device here"
    with jax.default_device(device):
        tokens = jnp.array([[1, 2, 1]], jnp.int32)
        _, draft = extend_lookup(init(1, 4), tokens, jnp.array([3], jnp.int32), max_draft=1)
        drafted = draft.tokens.tolist()
    return None if drafted == [[2]] else f"drafted {drafted} where [[2]] was expected"


def add_parser(subparsers: Any) -> None:
    """Adds `info` to the command line."""
    parser = subparsers.add_parser(
        "info",
        help="versions, devices, and which handlers work",
        description="Prints versions, devices, which handlers are built and which are usable, and "
        "the reason where they are not.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs `info`."""
    facts = collect()
    show(json.dumps(facts, indent=1) if args.json else _as_text(facts))
    return 0


def _as_text(facts: dict[str, Any]) -> str:
    lines = [f"{name:<10}{facts[name]}" for name in ("jax_sa", "jax", "jaxlib")]
    lines += [f"{'device':<10}{device}" for device in facts["devices"]]
    for name, handlers in facts["handlers"].items():
        usable = f"not usable: {handlers['problem']}" if handlers["problem"] else "usable"
        built = f" ({', '.join(handlers['built'])})" if handlers["built"] else ""
        lines.append(f"{name:<10}{usable}{built}")
    return "\n".join(lines)
