#!/usr/bin/env bash
# Pruning and quantization together, up to long contexts: time and memory.
source "$(dirname "$0")/_run.sh"
# A prefill of 131,072 tokens takes long enough to be its own warm-up.
WARMUP=${WARMUP:-0}
speed_settings
export CONTEXTS=${CONTEXTS:-32768,131072}

for quant in ${QUANTIZATIONS:-none bnb4}; do
  for batch in ${BATCHES:-1}; do
    for ratio in ${RATIOS:-1.0 0.5 0.25}; do
      if [[ $ratio == 1.0 ]]; then
        speed combined "$batch" QUANT_MODE="$quant"
      else
        speed combined "$batch" QUANT_MODE="$quant" KV_MODE="${METHOD:-l2}" KEEP_RATIO="$ratio"
      fi
    done
  done
done | sweep
