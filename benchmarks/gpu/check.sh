#!/usr/bin/env bash
# Checks of a machine with a GPU, in at most eight minutes: benchmarks/gpu/check.sh [--tiny] [--only equal,law] ...
# It needs a python3 with torch 2.11 and transformers 5.17 or newer. Packages that it lacks may lie as wheels in $WHEELS
# (default: .whl in the repository), e.g. pydantic, pydantic-core, annotated-types and typing-inspection; bitsandbytes
# (four bits) and trl with datasets (TRL beside it) are done without where they are missing, and that is said.
# VLLM_PYTHON is the interpreter of an environment with vLLM (pushes, mismatch, sampling); FSDP2 needs two GPUs.
# The table goes to the terminal, everything to $OUT/gpu.json (default: out/gpu.json).
set -eu
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}
WHEELS=${WHEELS:-.whl}
export PYTHONPATH="$PWD/src:$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 CUBLAS_WORKSPACE_CONFIG=:4096:8
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false TRL_EXPERIMENTAL_SILENCE=1
if compgen -G "$WHEELS/*.whl" >/dev/null; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$WHEELS"/*.whl
  PYTHONPATH="$site:$PYTHONPATH"
fi
"$PYTHON" -m benchmarks.gpu "$@"
