#!/usr/bin/env bash
# Attention backends against the prompt's length, with whole and layered prefills: time and memory.
source "$(dirname "$0")/_run.sh"
speed_settings
# Captured decode steps have one kernel of their own, whatever the backend.
export DECODE=${DECODE:-eager}
export CONTEXTS=${CONTEXTS:-2048,4096,8192,16384,32768}

for prefill in ${PREFILLS:-whole layered}; do
  for batch in ${BATCHES:-1 8}; do
    for attn in ${BACKENDS:-$(names_in kv_compression/attention)}; do
      speed "attention/$prefill" "$batch" ATTN_IMPL="$attn" PREFILL="$prefill"
    done
  done
done | sweep
