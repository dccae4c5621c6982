#!/usr/bin/env bash
# Runs the CPU handlers under the sanitizers of GCC or Clang.
#
#   ./sanitize_cpu.sh            all of them
#   ./sanitize_cpu.sh address    the tests of the ops, with AddressSanitizer and
#                                UndefinedBehaviorSanitizer in the handlers
#   ./sanitize_cpu.sh thread     the ops side by side on many threads, with ThreadSanitizer
#   PYTHON=... CXX=...           another interpreter, another compiler
#
# PYTHON needs jax, pytest, hypothesis, and what builds jax_sa (CONTRIBUTING.md). The handlers are
# built into a folder of their own; nothing is installed.
#
# AddressSanitizer runs in Python itself. ThreadSanitizer cannot: it does not see how the threads of
# jaxlib, compiled without it, wait for each other, and would call what is in order a race. So
# `tests/support/host_threads.cc` calls the same loops over rows with threads that it sees.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}
compiler=${CXX:-c++}
which=${1:-all}
case $which in
  all | address | thread) ;;
  *)
    echo "error: expected address or thread, got $which" >&2
    exit 2
    ;;
esac
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

tests=(automaton slots sequences pool draft_tree followers scan read_tokens host_build validate storage
  seqlens fused_copy vmap seed)

paths=()
for name in "${tests[@]}"; do paths+=("$repo/tests/test_$name.py"); done

if [ "$which" != thread ]; then
  echo "== address, undefined"
  flags="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -O1 -g1"
  CXX=$compiler "$python" -m pip install --quiet --no-build-isolation --no-deps \
    --target "$scratch/site" -C build-dir="$scratch/build" -C install.strip=false \
    -C cmake.build-type=Debug -C cmake.define.JAX_SA_CUDA=OFF \
    -C "cmake.define.CMAKE_CXX_FLAGS=$flags" "$repo"
  cd "$scratch"
  # Python and jaxlib do not free all that they hold when they end; handlers allocate nothing.
  LD_PRELOAD="$("$compiler" -print-file-name=libasan.so) $("$compiler" -print-file-name=libubsan.so) \
$("$compiler" -print-file-name=libstdc++.so)" \
    ASAN_OPTIONS=detect_leaks=0:halt_on_error=1 UBSAN_OPTIONS=print_stacktrace=1 \
    JAX_PLATFORMS=cpu PYTHONPATH="$scratch/site" \
    "$python" -m pytest -q -x -p no:cacheprovider -c "$repo/pyproject.toml" --rootdir "$repo" \
    -k "not 131072 and not 262144 and not corrupted_states" \
    "${paths[@]}" "${@:2}"
fi

if [ "$which" != address ]; then
  echo "== thread"
  "$compiler" -std=c++17 -O1 -g -fsanitize=thread -Wall -Wextra -Werror \
    -I "$repo/tests/support/thread_pool" -I "$repo/ffi" "$repo/tests/support/host_threads.cc" \
    -o "$scratch/host_threads" -pthread
  TSAN_OPTIONS=halt_on_error=1 "$scratch/host_threads"
fi
