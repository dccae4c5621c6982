#!/usr/bin/env bash
# Installs jax_sa into a fresh environment and runs the tests against what was installed.
#
#   ./test.sh                       everything but the tests marked slow
#   ./test.sh -m slow               these, which check more cases of the same
#   ./test.sh -k slots              arguments go to pytest
#   PYTHON=python3.12 ./test.sh     another interpreter
#   WHEEL=dist/FILE.whl ./test.sh   a wheel that was built before (see build_wheels.sh)
#   JAX="jax==0.9.2" ./test.sh      a version of JAX; otherwise the newest
#   JAX_DISABLE_MOST_OPTIMIZATIONS=0 ./test.sh
#                                   what XLA compiles as users have it: slower to compile
#   JAX_SA_REQUIRE_GPU=1 ./test.sh  what a missing GPU or CUDA compiler skips becomes a failure
#
# On a machine with a GPU the tests run there, elsewhere on the CPU. Where nvcc is found, the GPU's
# programs are compiled and checked even without a GPU; for that, JAX's CUDA plugin is installed.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

files() { find "$repo" \( -name .git -o -name __pycache__ \) -prune -o -print | sort; }

"${PYTHON:-python3}" -m venv "$scratch/venv"
python=$scratch/venv/bin/python
pip() { "$python" -m pip install --quiet --disable-pip-version-check "$@"; }

extras=test build=()
if command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then
  extras=test,cuda13
else
  export JAX_PLATFORMS=cpu
  # Where no GPU runs it, machine code on both sides of every condition in the sources will do.
  build=(-C "cmake.define.CMAKE_CUDA_ARCHITECTURES=80-real;90-real")
fi

files >"$scratch/before"
pip "${build[@]}" "${WHEEL:-$repo}[$extras]" "${JAX:-jax}"
files | diff "$scratch/before" - || { echo "test.sh: the installation left files behind" >&2; exit 1; }

if [[ $extras == test ]] && command -v nvcc >/dev/null; then
  version=$("$python" -c 'import jaxlib; print(jaxlib.__version__)')
  pip --no-deps "jax-cuda13-plugin==$version" "jax-cuda13-pjrt==$version"
fi

# From an empty directory, so that the checkout cannot stand in for the installed package.
mkdir "$scratch/empty"
cd "$scratch/empty"
export XLA_PYTHON_CLIENT_PREALLOCATE=false  # the workers share a GPU
"$python" -m pytest -c "$repo/pyproject.toml" --rootdir "$repo" -p no:cacheprovider \
  -n auto --dist worksteal "$repo/tests" "$@"
