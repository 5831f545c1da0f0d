#!/usr/bin/env bash
# Slurm: one node runs vLLM, all others train; a preempted job is queued again and goes on from its last checkpoint.
#
#   sbatch --nodes=9 --gpus-per-node=8 examples/scale/slurm.sh grpo.model=/shared/model grpo.prompts=/shared/prompts.jsonl
#
# Needs: a file system that all nodes share, in which it is submitted (runs/, the model; weights are pushed to the engine through
# it); TRAIN_BIN, the folder of `tiltyard` and `torchrun`; VLLM_BIN, that of `vllm` in its own environment, with the
# plugin of docs/scale.md. ENGINE=none trains on all nodes with the toolkit's own sampler.
#SBATCH --job-name=tiltyard
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@180
set -euo pipefail

RECIPE=${RECIPE:-examples/scale/grpo.yaml}
GPUS=${SLURM_GPUS_ON_NODE:-1}
PORT=$((20000 + SLURM_JOB_ID % 20000))
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
PATH="${TRAIN_BIN:+$TRAIN_BIN:}$PATH"
words=("$@")
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=150  # torchrun kills processes 30 s after SIGTERM otherwise, in the middle of a long step
train=("${nodes[@]}")

if [[ ${ENGINE:-vllm} != none && ${#nodes[@]} -gt 1 ]]; then
  engine=${nodes[0]} train=("${nodes[@]:1}")
  # The routes that change weights ask for no API key: the address must be of a private network.
  srun --nodes=1 --ntasks=1 --nodelist="$engine" --kill-on-bad-exit=1 env VLLM_SERVER_DEV_MODE=1 \
    "${VLLM_BIN:+$VLLM_BIN/}vllm" serve "${MODEL:?the folder that the engine starts from}" \
    --enable-scale-out --skip-tokenizer-init --logprobs-mode processed_logprobs --generation-config vllm \
    --weight-transfer-config '{"backend": "tiltyard_disk"}' --host "$engine" --port 8000 --data-parallel-size "$GPUS" &
  engine_step=$!
  words+=("grpo.vllm.url=http://$engine:8000")
  until curl -fsS "http://$engine:8000/health" >/dev/null 2>&1; do
    kill -0 "$engine_step" || { echo "the engine ended before it answered" >&2; exit 1; }
    sleep 5
  done
fi

list=$(IFS=,; echo "${train[*]}")
srun --nodes="${#train[@]}" --ntasks="${#train[@]}" --nodelist="$list" --kill-on-bad-exit=1 \
  torchrun --nnodes="${#train[@]}" --nproc-per-node="$GPUS" --rdzv-backend=c10d \
  --rdzv-endpoint="${train[0]}:$PORT" --rdzv-id="$SLURM_JOB_ID" --max-restarts=0 \
  --no-python tiltyard run "$RECIPE" "${words[@]}" &
step=$!

# SIGTERM, three minutes before the end or on preemption: every process stops after its step with a checkpoint.
stopped=0
trap 'stopped=1; kill -TERM $step 2>/dev/null' TERM
status=0
while kill -0 "$step" 2>/dev/null; do wait "$step" && status=0 || status=$?; done
[[ -z ${engine_step:-} ]] || kill "$engine_step" 2>/dev/null || true
if ((stopped && status)); then
  echo "stopped: queued again, and the same command goes on"
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$status"
