#!/usr/bin/env bash
# Runs examples/integrations: for each stack a fresh environment with its pins, on the CPU.
#
#   ./test_integrations.sh                      all
#   ./test_integrations.sh gemma tunix          some
#   PYTHON=python3.12 ./test_integrations.sh    another interpreter; maxtext needs this one
#
# Each stack is installed, run, and deleted before the next: some take several GB. It is not part of
# ./test.sh, because what it installs takes minutes and comes from others. Where uv is found it
# resolves what to install, since pip may look for hours at a stack with hundreds of dependencies.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export JAX_PLATFORMS=cpu

declare -A pins=(
  [gemma]="gemma==4.0.1 sentencepiece<0.2.2"
  [tunix]="google-tunix==0.1.7"
  [penzai]="penzai==0.2.5"
  [lalamo]="lalamo==0.17.0"
  [maxtext]="-r examples/integrations/maxtext.txt"
)
declare -A runs=(
  [gemma]="gemma|gemma_sampler"
  [tunix]="tunix --model qwen3|tunix --model qwen2|tunix --model llama3"
  [penzai]="penzai"
  [lalamo]="lalamo"
  [maxtext]="maxtext"
)

install() {  # ENVIRONMENT PACKAGE...
  local environment=$1
  shift
  if command -v uv >/dev/null; then
    uv pip install --quiet --python "$environment/bin/python" -C cmake.define.JAX_SA_CUDA=OFF "$@"
  else
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check \
      -C cmake.define.JAX_SA_CUDA=OFF "$@"
  fi
}

stacks=("$@")
[ ${#stacks[@]} -gt 0 ] || stacks=(gemma tunix penzai lalamo maxtext)
failed=()
for stack in "${stacks[@]}"; do
  if [ -z "${pins[$stack]:-}" ]; then
    echo "test_integrations.sh: expected stacks of ${!pins[*]}, got $stack" >&2
    exit 2
  fi
  echo "== $stack: ${pins[$stack]}"
  "${PYTHON:-python3}" -m venv "$scratch/$stack"
  read -ra packages <<<"${pins[$stack]}"
  install "$scratch/$stack" . "${packages[@]}" || { failed+=("to install $stack") && continue; }
  IFS='|' read -ra commands <<<"${runs[$stack]}"
  for command in "${commands[@]}"; do
    read -ra words <<<"$command"
    (cd examples && "$scratch/$stack/bin/python" -W ignore -m "integrations.${words[0]}" \
      "${words[@]:1}") || failed+=("$command")
  done
  rm -rf "${scratch:?}/$stack"
done
if [ ${#failed[@]} -gt 0 ]; then
  printf 'failed: %s\n' "${failed[@]}" >&2
  exit 1
fi
