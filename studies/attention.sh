#!/usr/bin/env bash
# Attention backends against the prompt's length: time and memory.
source "$(dirname "$0")/_run.sh"
speed_settings
# Captured decode steps have one kernel of their own, whatever the backend; layered prefills hide
# what a backend needs for a whole prompt.
export DECODE=${DECODE:-eager} PREFILL=${PREFILL:-whole}
export CONTEXTS=${CONTEXTS:-2048,4096,8192,16384,32768}

for batch in ${BATCHES:-1 8}; do
  for attn in ${BACKENDS:-sdpa flash2 flex eager}; do
    speed attention "$batch" ATTN_IMPL="$attn"
  done
done | sweep
