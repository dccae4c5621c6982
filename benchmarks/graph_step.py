"""Times the automaton's kernels alone, with a pool and without, as nodes of a CUDA graph.

    python benchmarks/graph_step.py --json out.json
    python benchmarks/graph_step.py --histogram

Without XLA around them: builds benchmarks/graph_step.cu with nvcc and runs it on source-code
tokens. With `--histogram`, single steps of 64 slots of 32,768 tokens, one token a step, on texts of
several kinds. Needs nvcc and a GPU.
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

from report import report
from source_tokens import source_tokens
from step_texts import step_texts

HERE = pathlib.Path(__file__).parent
TOKENS = 400_000
QUANTILES = ("p50_us", "p99_us", "p99_9_us", "max_us")


def build(folder):
    kernels = [HERE.parent / "ffi" / name for name in ("automaton.cu", "pool_insert.cu")]
    sources = [HERE / "graph_step.cu", *kernels]
    flags = ["-std=c++17", "-O3", "-arch=native", "-I", HERE.parent / "ffi"]
    subprocess.run(["nvcc", *flags, *sources, "-o", folder / "graph_step"], check=True)
    return folder / "graph_step"


def run(program, tokens, folder, *options):
    """The rows that the program prints, as they come."""
    tokens.tofile(folder / "tokens.bin")
    command = [program, folder / "tokens.bin", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield from map(json.loads, process.stdout)
    if process.returncode:
        sys.exit(f"error: graph_step failed with status {process.returncode}")


def cases(program, folder):
    yield from run(program, source_tokens(TOKENS), folder)


def histogram(program, folder):
    for name, (tokens, stride) in step_texts().items():
        for row in run(program, tokens, folder, str(stride)):
            yield {"text": name} | {key: row[key] for key in QUANTILES}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="write the figures here")
    parser.add_argument("--histogram", action="store_true", help="single steps on several texts")
    args = parser.parse_args()
    if shutil.which("nvcc") is None:
        sys.exit("error: nvcc is not on the PATH")

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        program = build(folder)
        rows = []
        for row in (histogram if args.histogram else cases)(program, folder):
            rows.append(row)
            print(f"\r{len(rows)} measured", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
    report(rows, args.json)


if __name__ == "__main__":
    main()
