# Two commands for a fresh machine: `make pipeline` and `make test`. `make help` lists the rest.

PYTHON ?= python3.11
PROFILE ?= smoke-vision
DATA ?=
PROFILES ?=
SET ?=
PARAMS ?=
PORT ?= 8000
WORKFLOW ?= pipeline
NAMESPACE ?= loraline
OVERLAY ?= laptop
BUILDER ?= docker
TAG ?= dev

comma := ,
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
MANIFEST := outputs/latest/deploy-vllm/vllm.yaml
# Without a GPU, vLLM's CPU build serves; it needs the CPU build of torch and two repairs.
SERVE := $(if $(shell command -v nvidia-smi 2>/dev/null),gpu$(comma)serve-gpu,serve-cpu)

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
pipeline: install workflows/pipeline.yaml  ## Run the line here: make pipeline [PROFILE=smoke-text] [DATA=folder] [SET=r=16]
	@$(BIN)/python -m runner.run_local workflows/pipeline.yaml -p 'profile=$(PROFILE)' -p 'data=$(DATA)' -p 'set=$(SET)'
	@$(BIN)/python workflows/summary.py outputs/latest

# The workflow lists the profiles, so a new one is known at once.
workflows/pipeline.yaml: $(addprefix workflows/,pipeline.py templates.py resources.py) $(wildcard lora_profiles/*.yaml) | install
	@$(BIN)/python workflows/pipeline.py

.PHONY: mlflow
mlflow: install  ## Open the MLflow UI on the local store
	@mkdir -p mlruns
	$(BIN)/mlflow server --backend-store-uri sqlite:///$(CURDIR)/mlruns/mlflow.db \
		--artifacts-destination $(CURDIR)/mlruns/artifacts --host 127.0.0.1 --port 5000

.PHONY: serve
serve: install  ## Serve the candidate of the last run with vLLM: make serve [PORT=8000]
	@test -f $(MANIFEST) || { echo "serve: $(MANIFEST) does not exist; run make pipeline first (a rejected candidate has none)"; exit 2; }
	@$(BIN)/python steps/serve_local.py $(MANIFEST) --port $(PORT)

.PHONY: test
test: install  ## Run the tests: half an hour on two cores, nothing is fetched
	$(BIN)/pytest

.PHONY: lint
lint: install  ## Hold the rendered workflows against Argo's rules and production's
	@$(BIN)/python workflows/lint.py

.PHONY: images
images:  ## Build both images: make images [BUILDER=buildah] [TAG=dev]
	$(BUILDER) build --build-arg GIT_SHA=$$(git rev-parse HEAD) -t localhost/loraline:$(TAG) -f images/cpu.Dockerfile .
	$(BUILDER) build --build-arg GIT_SHA=$$(git rev-parse HEAD) -t localhost/loraline-gpu:$(TAG) -f images/gpu.Dockerfile .

.PHONY: cluster-apply
cluster-apply:  ## Set up the namespace: make cluster-apply [OVERLAY=laptop]
	@test "$(NAMESPACE)" = loraline || { echo "cluster-apply: workflows/cluster/ is about the namespace loraline; for $(NAMESPACE) write an overlay"; exit 2; }
	kubectl apply -k workflows/cluster/$(OVERLAY)
ifeq ($(OVERLAY),laptop)
	@kubectl -n $(NAMESPACE) get secret loraline >/dev/null 2>&1 || kubectl -n $(NAMESPACE) create secret generic loraline \
		--from-literal=AWS_ACCESS_KEY_ID=loraline --from-literal=AWS_SECRET_ACCESS_KEY=$$(openssl rand -hex 16)
	@kubectl -n $(NAMESPACE) get secret mlflow >/dev/null 2>&1 || kubectl -n $(NAMESPACE) create secret generic mlflow \
		--from-literal=backend-store-uri=sqlite:////data/mlflow/mlflow.db
endif
	kubectl -n $(NAMESPACE) rollout status deployment/mlflow --timeout=10m

.PHONY: submit
submit: install  ## Run on the cluster: make submit [WORKFLOW=sweep] [PROFILE=…] [DATA=…] [SET=r=16] [PARAMS='resources=gpu-large …']
	@$(BIN)/python workflows/submit.py workflows/$(WORKFLOW).yaml --namespace $(NAMESPACE) \
		$(if $(filter pipeline sweep,$(WORKFLOW)),-p 'profile=$(PROFILE)' -p 'data=$(DATA)') \
		$(if $(filter sweep,$(WORKFLOW)),-p 'profiles=$(or $(PROFILES),["$(PROFILE)"])') \
		$(if $(filter pipeline sweep,$(WORKFLOW)),-p 'set=$(SET)') \
		$(foreach parameter,$(PARAMS),-p '$(parameter)')

.PHONY: coverage
coverage: install  ## Run the tests and report the statements and branches that none of them reaches
	$(BIN)/pytest --cov --cov-report=term
	@$(BIN)/coverage html --quiet --directory outputs/coverage && echo "outputs/coverage/index.html shows each line"

.PHONY: test-slow
test-slow: install  ## Run the tests that take minutes each
	$(BIN)/pytest -m slow

.PHONY: test-cluster
test-cluster: install  ## Run the workflows on the cluster of KUBECONFIG, or on one started for it
	$(BIN)/pytest -m cluster tests/cluster

.PHONY: mutants
mutants: install  ## Break the code in many places and say which breakages no test notices: an hour
	$(BIN)/python tests/mutants/run.py

.PHONY: quality
quality: install  ## Format check, lint, spelling, layers, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy
	$(BIN)/python workflows/pipeline.py --check
	$(BIN)/python workflows/prepare_shares.py --check
	$(BIN)/python workflows/lint.py

.PHONY: render
render: install  ## Write workflows/*.yaml and the manifests that tests compare with anew
	$(BIN)/python workflows/pipeline.py
	$(BIN)/python workflows/prepare_shares.py
	$(BIN)/python tests/loraline/delivery/test_manifest_goldens.py

.PHONY: zoo
zoo: install  ## Ask a real vLLM again what it does with each adapter of tests/zoo: five minutes
	$(BIN)/python tests/zoo/ask_vllm.py

.PHONY: clean
clean:  ## Remove what running left behind, the MLflow store included; keeps .venv
	rm -rf outputs mlruns
