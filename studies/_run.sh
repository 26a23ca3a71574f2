# What the sweeps share; each of them reads it first. Every setting of the environment is honoured;
# the loops' own variables are lists with spaces between.
set -euo pipefail

# What the sweep does, from its head, and its variables, from where they are read. It starts nothing.
if (($#)); then
  sed -n '2,/^[^#]/s/^# //p' "$0"
  printf '\n%s takes no arguments: it reads the settings of its scripts, and\n\n' "$0"
  grep -ohE '\$\{[A-Z_]+:?-(\$\([^)]*\)|[^}$]*)\}' "$0" "${BASH_SOURCE[0]}" |
    sed -E 's/..([A-Z_]+):?-(.*)./  \1="\2"/' | awk -F= '!seen[$1]++'
  [[ $1 == -h || $1 == --help ]] && exit 0 || exit 2
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."

LOGDIR=${LOGDIR:-logs/studies}
export SKIP_DONE=${SKIP_DONE:-1} RESUME=${RESUME:-1} WANDB_MODE=${WANDB_MODE:-disabled}

# The names of a folder's methods, backends or quantizations: one file is one of them.
names_in() {
  printf '%s\n' "$1"/[a-z]*.py | sed 's/.*\/\(.*\)\.py/\1/'
}

# A run: a script and settings, as a line that longctx.sweep reads.
cell() {
  printf '%q ' "$@"
  echo
}

# Settings for speed and memory, where the environment has no others.
speed_settings() {
  export MODEL_ID=${MODEL_ID:-random/mistral-7b} DATASET_ID=${DATASET_ID:-synthetic}
  export MAX_NEW_TOKENS=${MAX_NEW_TOKENS:-32} WARMUP=${WARMUP:-1}
}

# A run for speed and memory, of REQUESTS requests: folder, batch size, settings.
speed() {
  local folder=$1 batch=$2
  shift 2
  cell narrativeqa_eval.py LOGDIR="$LOGDIR/$folder" BATCH_SIZE="$batch" \
    N_SAMPLES="${N_SAMPLES:-$((${REQUESTS:-2} * batch))}" "$@"
}

# Runs the cells on stdin, all in one process: the model is loaded once. Ctrl-C ends it.
sweep() {
  "${PYTHON:-python}" -m longctx.sweep
}
