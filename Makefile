# Two commands for a fresh machine: `make pipeline` and `make test`. `make help` lists the rest.

PYTHON ?= python3.11
PROFILE ?= smoke-vision
DATA ?=
PORT ?= 8000

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
MANIFEST := outputs/latest/deploy-vllm/vllm.yaml
# Without a GPU, vLLM's CPU build serves; it needs the CPU build of torch and two repairs.
SERVE := $(if $(shell command -v nvidia-smi 2>/dev/null),serve-gpu,serve-cpu)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help

.PHONY: help
help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.PHONY: install
install: $(INSTALLED)  ## Make .venv with everything pinned; repeated only when the pins change

$(INSTALLED): pyproject.toml constraints.txt $(wildcard images/cpu_repairs/*)
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed; install Python 3.11 or set PYTHON"; exit 2; }
	@echo "Installing into $(VENV): some minutes, once"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[$(SERVE),dev]'
ifeq ($(SERVE),serve-cpu)
	$(BIN)/pip uninstall --quiet --yes torchaudio torchcodec
	$(BIN)/pip install --quiet --no-deps ./images/cpu_repairs
endif
	@touch $@

.PHONY: pipeline
pipeline: install workflows/pipeline.yaml  ## Run the line here: make pipeline [PROFILE=smoke-text] [DATA=folder]
	@$(BIN)/python workflows/run_local.py workflows/pipeline.yaml -p 'profile=$(PROFILE)' -p 'data=$(DATA)'
	@$(BIN)/python workflows/summary.py outputs/latest

# The workflow lists the profiles, so a new one is known at once.
workflows/pipeline.yaml: workflows/pipeline.py $(wildcard lora_profiles/*.yaml) | install
	@$(BIN)/python workflows/pipeline.py

.PHONY: mlflow
mlflow: install  ## Open the MLflow UI on the local store
	@mkdir -p mlruns
	$(BIN)/mlflow server --backend-store-uri sqlite:///$(CURDIR)/mlruns/mlflow.db \
		--artifacts-destination $(CURDIR)/mlruns/artifacts --host 127.0.0.1 --port 5000

.PHONY: serve
serve: install  ## Serve the candidate of the last run with vLLM: make serve [PORT=8000]
	@test -f $(MANIFEST) || { echo "serve: $(MANIFEST) does not exist; run make pipeline first (a rejected candidate has none)"; exit 2; }
	@$(BIN)/python workflows/serve_local.py $(MANIFEST) --port $(PORT)

.PHONY: test
test: install  ## Run the tests: ten minutes on two cores, nothing is fetched
	$(BIN)/pytest

.PHONY: test-slow
test-slow: install  ## Run the tests marked slow: gates that are killed, both engines, a browser
	$(BIN)/pytest -m slow

.PHONY: quality
quality: install  ## Format check, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

.PHONY: render
render: install  ## Write workflows/*.yaml anew from their Hera source
	$(BIN)/python workflows/pipeline.py

.PHONY: clean
clean:  ## Remove what running left behind, the MLflow store included; keeps .venv
	rm -rf outputs mlruns
