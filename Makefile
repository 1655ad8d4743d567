# Each target is what a person types and what CI runs.
#   make demo     a labelled sheet of pictures from the shipped weights (installs the base on its first run)
#   make gallery  docs/images/gallery.jpg anew: eight concepts drawn by chance in all nine styles, seed 0
#   make train-emoji  the base model of the package trained anew, all stages, under RUN (hours on two cores; again goes on)
#   make install  the editable package with everything that the tests need
#   make check    format, lint, types, import contracts, spelling
#   make fix      what can be put right by a tool
#   make test     the fast tests; shapes are checked in each call
#   make test-slow, make e2e, make test-gpu
#   make matrix   the fault matrix at full size and the presets too large for every run (an hour; 16 GB of memory)
#   make goldens  stored texts (docs/cli, tests/golden) anew, and the difference
#   make bench    ours and the peers in turns: a table, and OUT/bench.json (make bench-env makes their environment, 6 GB)
#
# The CPU build of torch on Linux: make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
TORCH ?= torch==2.13.0
PIP_ARGS ?=
OUT ?= out
BENCH_TORCH ?= torch==2.14.1 torchvision==0.29.1
BENCH_ARGS ?=

BIN := .venv/bin
BENCH_BIN := .bench-venv/bin
DIFFUSERS := diffusers==0.42.1 importlib_metadata zipp requests urllib3 charset-normalizer regex filelock huggingface-hub
PEERS := gigagan-pytorch==0.3.0 aura-sr==0.0.4 diffusers==0.42.1 transformers==5.24.0 openvino==2026.4.1
PROMPTS := src/gigagan/presets/demo.txt
DATA ?= data
RUN ?= runs/emoji64
TRAIN_ARGS ?=

.PHONY: demo gallery train-emoji install check fix test test-slow test-gpu e2e matrix goldens bench bench-env print-torch

demo: .venv/.base
	$(BIN)/gigagan generate --prompts $(PROMPTS) --seeds 0 --grid $(OUT)/demo.png

# The concepts: random.Random(0).sample of the sorted names of those that are trained on.
gallery: .venv/.base
	$(BIN)/gigagan generate --prompts src/gigagan/presets/gallery.txt --seeds 0 --grid $(OUT)/gallery.png
	$(BIN)/python -c "from PIL import Image; sheet = Image.open('$(OUT)/gallery.png').convert('RGB'); \
	  sheet.reduce(3).save('docs/images/gallery.jpg', quality=88)"

# TRAIN_ARGS: --nproc 2 (a process a core is faster than two threads), --dtype float32 (processors without bfloat16).
train-emoji: .venv/.dev $(DATA)/emoji64 $(DATA)/emoji64-features $(DATA)/emoji64-heads
	$(BIN)/gigagan train emoji64-released --run-dir $(RUN) data.path=$(DATA)/emoji64 \
	  data.features=$(DATA)/emoji64-features vision.heads=$(DATA)/emoji64-heads $(TRAIN_ARGS)

$(DATA)/emoji64:
	$(BIN)/gigagan data weights lite0
	$(BIN)/gigagan data emoji --resolution 64 --out $@

$(DATA)/emoji64-features: | $(DATA)/emoji64
	$(BIN)/gigagan data encode $(DATA)/emoji64 --out $@

$(DATA)/emoji64-heads: | $(DATA)/emoji64
	$(BIN)/gigagan data heads $(DATA)/emoji64 --resolution 64 --out $@

# The files in .venv say what is installed; they have no prerequisites, so nothing is installed twice behind your back.
.venv/bin/python:
	$(PYTHON) -m venv .venv

# --no-compile: Python compiles what it imports; all of torch would be 170 MB more.
.venv/.base: | .venv/bin/python
	$(BIN)/pip install --no-compile $(PIP_ARGS) "$(TORCH)"
	$(BIN)/pip install --no-compile $(PIP_ARGS) -e .
	touch $@

.venv/.dev: | .venv/bin/python
	$(MAKE) install

install: | .venv/bin/python
	$(BIN)/pip install $(PIP_ARGS) "$(TORCH)"
	$(BIN)/pip install $(PIP_ARGS) -e '.[dev]'
	touch .venv/.base .venv/.dev

check: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/codespell

fix: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# On all cores; tests of one group share what is dear to make, so they stay together.
SPREAD := -n auto --dist loadgroup

test: .venv/.dev
	$(BIN)/python -m pytest $(SPREAD)

# Those of servers, dying processes and time alone on the machine, the others on all cores.
SLOW := -m "slow and not gpu and not e2e and not matrix"
ALONE := tests/serving tests/cluster $(filter-out %/test_resume.py,$(wildcard tests/reliability/test_*.py))

test-slow: .venv/.dev
	$(BIN)/python -m pytest $(SPREAD) $(SLOW) $(ALONE:%=--ignore %)
	$(BIN)/python -m pytest $(SLOW) $(ALONE)

test-gpu: .venv/.dev
	$(BIN)/python -m pytest -m gpu

# diffusers loads our model directories; none of ours needs it, and it may not choose torch.
e2e: .venv/.dev
	$(BIN)/pip install -q --no-deps $(PIP_ARGS) $(DIFFUSERS)
	$(BIN)/python -m pytest $(SPREAD) -m e2e tests/e2e --ignore tests/e2e/test_studio.py
	$(BIN)/python -m pytest -m e2e tests/e2e/test_studio.py # one server and one browser have the machine to themselves

matrix: .venv/.dev
	$(BIN)/python -m pytest -m matrix

goldens: .venv/.dev
	$(BIN)/python -m pytest -q --write-goldens tests/test_cli_help.py tests/test_cost.py
	git --no-pager diff --stat docs/cli tests/golden

bench: .bench-venv/.made
	$(BENCH_BIN)/python benchmarks/run.py --out $(OUT)/bench.json $(BENCH_ARGS)

bench-env: .bench-venv/.made

# Of its own: the peers need torchvision, and none of them is a dependency of the package.
.bench-venv/.made:
	$(PYTHON) -m venv .bench-venv
	$(BENCH_BIN)/pip install --no-compile $(PIP_ARGS) $(BENCH_TORCH)
	$(BENCH_BIN)/pip install --no-compile $(PIP_ARGS) -e '.[train,eval]' $(PEERS) matplotlib==3.11.2
	touch $@

print-torch:
	@echo "$(TORCH)"
