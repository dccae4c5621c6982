"""Measures the share of jax_sa's own ops in a decoding step, from a profile.

    python benchmarks/share.py --json out.json

The bundled model writes on after the bundled prompts, as in examples/run_sa_spec.py. The time from
the end of the op that reads the prompts to the end of the last op counts: on a GPU the time of all
kernels, because a profiler slows down launches but not kernels; on a CPU all time. With MTP, this
includes the module's reading of the prompts, once. Needs `pip install jax_sa[tokenizer]`.
"""

import argparse
import pathlib
import sys
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from report import add_json, positive, report

from jax_sa.cli.progress import ProgressBar

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

import run_sa_spec

ON_CPU = jax.default_backend() == "cpu"
MODES = (run_sa_spec.Mode(use_sa=True, mtp_tokens=0), run_sa_spec.Mode(use_sa=True, mtp_tokens=1))


class Event(NamedTuple):
    """A span of time on the device, in microseconds."""

    begin: float
    end: float
    is_ours: bool
    """Whether it is one of jax_sa's kernels or, on a CPU, one of its calls."""


def profile(run: Callable[[], Any]) -> list[Event]:
    """The events on the device during a call, in order."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            run()
        (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
        planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
    plane, ours = ("/host:CPU", "ffi_call") if ON_CPU else ("/device:", "jax_sa")
    return sorted(
        Event(event.start_ns / 1e3, event.end_ns / 1e3, ours in event.name)
        for p in planes
        if p.name.startswith(plane)
        for line in p.lines
        for event in line.events
        if not event.name.startswith("end: ")
    )


def measure(engine: run_sa_spec.Engine, mode: run_sa_spec.Mode) -> dict[str, float]:
    """Microseconds of a step, and of jax_sa's ops in it, over all batches."""
    batches = engine.batches()
    engine.generate(mode, batches[0])  # compiles
    bar = ProgressBar(len(batches), f"batches of {engine.args.batch_size}, {mode.name}")
    steps, total, own = 0, 0.0, 0.0
    for batch in batches:
        results = []
        events = profile(lambda batch=batch, to=results: to.append(engine.generate(mode, batch)))
        ours = [event for event in events if event.is_ours]
        ((written, _),) = results
        most = max(result.steps for result in written)
        # The prompts take one, and on a GPU, where they are long, a kernel more that builds them.
        reading, ops = ours[:-most], ours[-most:]
        assert len(reading) in (1, 2), (
            f"expected {most} steps' ops and the prompts', got {len(ours)}"
        )
        prefill = reading[-1]
        window = [e for e in events if prefill.end <= e.begin and e.end <= ops[-1].end]
        steps += most
        total += ops[-1].end - prefill.end if ON_CPU else sum(e.end - e.begin for e in window)
        own += sum(op.end - op.begin for op in ops)
        bar.advance(1)
    return {"step_us": total / steps, "jax_sa_us": own / steps, "share_percent": 100 * own / total}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_sizes", type=positive, nargs="+", default=[1, 16])
    parser.add_argument("--max_new_tokens", type=positive, default=128)
    add_json(parser)
    args = parser.parse_args()

    rows = []
    for size in args.batch_sizes:
        options = ["--batch_size", str(size), "--max_new_tokens", str(args.max_new_tokens)]
        with jax.default_matmul_precision("highest"):
            engine = run_sa_spec.Engine(run_sa_spec.parse_args(options))
            for mode in MODES:
                rows.append({"batch": size, "drafts": mode.name} | measure(engine, mode))
    report(rows, args.json, device=jax.devices()[0].device_kind)


if __name__ == "__main__":
    main()
