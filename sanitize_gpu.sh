#!/usr/bin/env bash
# Runs tests of every kernel on a GPU under compute-sanitizer: memcheck, racecheck, initcheck and
# synccheck, all four side by side. jax_sa, pytest and hypothesis must be installed.
#
#   ./sanitize_gpu.sh                 all four tools
#   ./sanitize_gpu.sh racecheck       one
#   LIMIT=100 ./sanitize_gpu.sh       ends whatever takes more than 100 s, which then counts as failed
#   LOGS=folder ./sanitize_gpu.sh     keeps their reports there
#
# A tool makes kernels 10 to 1000 times slower, so of each kernel a few tests run that reach all of
# its branches. racecheck and synccheck look at the kernels of this project alone, because XLA's own
# would take hours. initcheck has to see every kernel that writes, XLA's included; where one of those
# reads what nobody wrote, that is no error here: only reports about our own kernels count.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tools=("$@")
[ $# -gt 0 ] || tools=(memcheck racecheck initcheck synccheck)
for tool in "${tools[@]}"; do
  case $tool in
    memcheck | racecheck | initcheck | synccheck) ;;
    *)
      echo "error: expected memcheck, racecheck, initcheck or synccheck, got $tool" >&2
      exit 2
      ;;
  esac
done
PATH=$PATH:/usr/local/cuda/bin
command -v compute-sanitizer >/dev/null || {
  echo "error: expected compute-sanitizer of the CUDA toolkit on the PATH" >&2
  exit 2
}
logs=${LOGS:-$(mktemp -d)}
mkdir -p "$logs"

# Of each kernel: extend, lookup, extend_lookup, slots, pools, trees, followers (noted, of a vocabulary
# larger than 2**15 too, and in trees), the scan, the parallel build, validate, seqlens, fused_copy,
# and the layers of the example.
tests=(
  "test_automaton.py -k test_blocks_of_tokens and source-code and (31 or 33)"
  "test_slots.py -k conflict or alignment and 5 or has_it and 40"
  "test_host_build.py -k goes_on and 41 and int32"
  "test_read_tokens.py -k 33"
  "test_pool.py -k test_inserts and 3-64 or test_lookups and 3-64-options6 or test_insert_slots or rebasing and 30"
  "test_draft_tree.py -k leader_is or rows_and_limits or garbage"
  "test_followers.py -k test_note and (33-ties or 5000-few) or groups_and_limits or run-break-run"
  "test_what_works_where.py -k this_platform and note_followers"
  "test_scan.py -k kernel and (blocks and 17 and source-code or sees_matches and 40)"
  "test_prefill.py -k rows_of_all_kinds or prompt_then_tree or full_slot"
  "test_validate.py -k are_valid and most_edges and 33 or not_read or duplicate"
  "test_seqlens.py -k many_rows and (257 or 1025) or too_small"
  "test_fused_copy.py -k about_as_long and int8 and 1032 or many_tensors or sixteen_byte"
  "test_llama_layer_kernels.py -k kernels_on_a_gpu and 33 or head_on_a_gpu and 96-True"
)

# XLA's allocator hides what a kernel does outside of an array, so each array has its own memory.
export XLA_PYTHON_CLIENT_PREALLOCATE=false XLA_PYTHON_CLIENT_ALLOCATOR=platform
# Calls that XLA puts into a CUDA graph are checked as calls of their own.
export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_enable_command_buffer= --xla_gpu_autotune_level=0"
export JAX_SA_REQUIRE_GPU=1 PYTHONPATH="$repo/tests/support:${PYTHONPATH:-}"

# What the names of our kernels contain: those of the layers are written in Python.
ours_in() { [[ $1 == test_llama* ]] && echo _kernel || echo jax_sa; }

run() { # tool, number of a selection
  local tool=$1 selection=${tests[$2]} options=() printed=20
  case $tool in
    memcheck) ;;
    racecheck | synccheck) options=(--kernel-name "kns=$(ours_in "$selection")") ;;
    initcheck) printed=1000000 ;;  # ours may come after any number of XLA's
  esac
  local file=${selection%% *} chosen=${selection#* -k }
  local log="$logs/$tool-$(basename "$file" .py).txt"
  # A tool that crashes itself, or loses track of a launch and counts that as a hazard, has found
  # nothing, and mostly does not do so again.
  for _ in 1 2 3; do
    (cd /tmp && timeout "${LIMIT:-600}" compute-sanitizer --tool "$tool" "${options[@]}" \
      --print-limit $printed --log-file "$log" "${PYTHON:-python3}" -m pytest -q -x \
      -p no:cacheprovider -p no:xdist -p no:benchmark -c "$repo/pyproject.toml" \
      --rootdir "$repo" "$repo/tests/$file" -k "$chosen") >"$log.pytest" 2>&1 || true
    if grep -q SUMMARY "$log" 2>/dev/null && ! grep -q "Internal Sanitizer Error" "$log"; then
      break
    fi
  done
}

started=$SECONDS
for tool in "${tools[@]}"; do
  for i in "${!tests[@]}"; do
    while [ "$(jobs -rp | wc -l)" -ge "${JOBS:-8}" ]; do wait -n || true; done
    run "$tool" "$i" &
  done
done
wait || true

printf '%-10s %-28s %-44s %s\n' tool tests pytest sanitizer
failed=0
for tool in "${tools[@]}"; do
  for selection in "${tests[@]}"; do
    file=${selection%% *}
    log="$logs/$tool-$(basename "$file" .py).txt"
    outcome=$(grep -E "passed|failed|error|deselected" "$log.pytest" | tail -1 || true)
    # Each report has a line that names the kernel.
    ours=$(grep -cE "^=+ +at .*$(ours_in "$selection")" "$log" 2>/dev/null || true)
    summary=$(grep -E "ERROR SUMMARY|RACECHECK SUMMARY" "$log" 2>/dev/null | tail -1 | sed 's/^=* *//' || true)
    printf '%-10s %-28s %-44s %s\n' "$tool" "$file" "${outcome:-no result}" "${summary:-no summary} (${ours:-0} of ours)"
    [[ $outcome == *passed* && $outcome != *failed* && -n $summary ]] || failed=1
    if [ "$tool" = initcheck ]; then
      [[ ${ours:-0} -eq 0 && $summary != *"not printed"* ]] || failed=1
    else
      [[ $summary == *" 0 errors"* || $summary == *"0 hazards"* ]] || failed=1
    fi
  done
done
echo "$((SECONDS - started)) s; reports in $logs"
exit $failed
