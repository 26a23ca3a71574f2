#!/usr/bin/env bash
# KV pruning, time and memory. PARTS=pays: one method against length and batch, in both decode loops:
# where does pruning begin to pay? PARTS=methods: every method, ratio and scope at one length.
source "$(dirname "$0")/_run.sh"
speed_settings
ratios=${RATIOS:-1.0 0.75 0.5 0.25}

# Settings of a method at a ratio; 1.0 is the full cache.
pruned() {
  if [[ $2 == 1.0 ]]; then echo KV_MODE=none; else echo "KV_MODE=$1 KEEP_RATIO=$2"; fi
}

pays() {
  for batch in ${BATCHES:-1 8}; do
    for decode in ${DECODINGS:-auto eager}; do
      for ratio in $ratios; do
        speed kv/pays "$batch" CONTEXTS="${LENGTHS:-2048,8192,32768}" DECODE="$decode" \
          $(pruned "${METHOD:-l2}" "$ratio")
      done
    done
  done
}

methods() {
  for scope in ${SCOPES:-prompt context}; do
    for ratio in $ratios; do
      for method in ${METHODS:-$(names_in kv_compression/methods)}; do
        speed kv/methods 1 CONTEXTS="${CONTEXTS:-32768}" KV_SCOPE="$scope" \
          $(pruned "$method" "$ratio")
      done
    done
  done
}

for part in ${PARTS:-pays methods}; do "$part"; done | sweep
