#!/usr/bin/env bash
# What pruning costs in quality: every method and ratio on every data set. NARRATIVEQA, HOTPOTQA and
# LONGBENCH: data sets' ids, files of their schema, or written ones; empty for none.
source "$(dirname "$0")/_run.sh"
export MODEL_ID=${MODEL_ID:-smollm2-135m} ATTN_IMPL=${ATTN_IMPL:-sdpa}
export N_SAMPLES=${N_SAMPLES:-100} BATCH_SIZE=${BATCH_SIZE:-25} WARMUP=${WARMUP:-0}
export MAX_NEW_TOKENS=${MAX_NEW_TOKENS:-32}

# Script, data, scope, settings: the full cache, then every method at every ratio.
methods() {
  local script=$1 data=$2 scope=$3
  shift 3
  local task=${script%_eval.py} name
  name=$(basename "${data%.*}")
  set -- DATASET_ID="$data" KV_SCOPE="$scope" LOGDIR="$LOGDIR/quality/$task-$name/$scope" "$@"
  cell "$script" "$@"
  for ratio in ${RATIOS:-0.75 0.5 0.25}; do
    for method in ${METHODS:-$(names_in kv_compression/methods)}; do
      cell "$script" "$@" KV_MODE="$method" KEEP_RATIO="$ratio" PRUNE_AFTER=0
    done
  done
}

lengths=${CONTEXTS:-512,1024,2048,4096}
for scope in ${SCOPES:-context prompt}; do
  for data in ${NARRATIVEQA-synthetic-passkey synthetic}; do
    methods narrativeqa_eval.py "$data" "$scope" CONTEXTS="$lengths"
  done
  for data in ${HOTPOTQA-synthetic}; do
    methods hotpotqa_eval.py "$data" "$scope" CONTEXTS="$lengths"
  done
  # One token is the answer, which only pruning before the question can touch. Questions and choices
  # alone take more than 512 tokens.
  if [[ $scope == context ]]; then
    for data in ${LONGBENCH-synthetic}; do
      methods longbench_kv_eval.py "$data" "$scope" CONTEXTS="${CONTEXTS:-1024,2048,4096}" \
        ANSWER_MODE=loglikelihood
    done
  fi
done | sweep
