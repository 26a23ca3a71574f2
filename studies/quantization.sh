#!/usr/bin/env bash
# Quantized weights in both decode loops, and a quantized cache: time and memory.
source "$(dirname "$0")/_run.sh"
speed_settings
export CONTEXTS=${CONTEXTS:-2048,8192,32768}

# Weights outermost: each kind is loaded once.
for quant in ${QUANTIZATIONS:-$(names_in longctx/quantization)}; do
  for batch in ${BATCHES:-1 8}; do
    for decode in ${DECODINGS:-auto eager}; do
      speed quantization "$batch" QUANT_MODE="$quant" DECODE="$decode"
    done
    if [[ $quant == none ]]; then
      for kv_quant in ${KV_FORMATS-int8 int4}; do
        speed quantization "$batch" KV_QUANT="$kv_quant"
      done
    fi
  done
done | sweep
