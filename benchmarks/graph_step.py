"""Times the automaton's kernels alone, with a pool and without, as nodes of a CUDA graph.

    python benchmarks/graph_step.py --json out.json

Without XLA around them: builds benchmarks/graph_step.cu with nvcc and runs it on source-code
tokens. Needs nvcc and a GPU.
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

HERE = pathlib.Path(__file__).parent
TOKENS = 400_000


def build(folder):
    kernels = [HERE.parent / "ffi" / name for name in ("automaton.cu", "pool_insert.cu")]
    sources = [HERE / "graph_step.cu", *kernels]
    flags = ["-std=c++17", "-O3", "-arch=native", "-I", HERE.parent / "ffi"]
    subprocess.run(["nvcc", *flags, *sources, "-o", folder / "graph_step"], check=True)
    return folder / "graph_step"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", help="write the figures here")
    args = parser.parse_args()
    if shutil.which("nvcc") is None:
        sys.exit("error: nvcc is not on the PATH")

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        source_tokens(TOKENS).tofile(folder / "tokens.bin")
        command = [build(folder), folder / "tokens.bin"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            rows = []
            for line in process.stdout:
                rows.append(json.loads(line))
                print(f"\rcase {len(rows)} of 24", end="", file=sys.stderr, flush=True)
            print(file=sys.stderr)
        if process.returncode:
            sys.exit(f"error: graph_step failed with status {process.returncode}")
    report(rows, args.json)


if __name__ == "__main__":
    main()
