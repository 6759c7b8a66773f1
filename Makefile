# Two commands for a fresh machine: `make pipeline` and `make test`. `make help` lists the rest.

PYTHON ?= python3.11
PROFILE ?= smoke-text
DATA ?=
PROFILES ?=
SET ?=
PARAMS ?=
CLASSES ?=
PORT ?=
GATEWAY_PORT ?=
MODEL ?=
ALIAS ?=
WORKFLOW ?= pipeline
YES ?=
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

# uv where it is installed, unless pip is configured with another index, which uv would not read.
UV = $(shell $(PYTHON) -m pip config list 2>/dev/null | grep -E 'index|find-links' >/dev/null || command -v uv)
FETCH = $(if $(UV),$(UV) pip install --quiet --python $(BIN)/python $(if $(filter serve-cpu,$(SERVE)),--torch-backend cpu),\
	$(BIN)/pip install --quiet --no-compile)
# Packages that steps import: their bytecode is compiled at once, on all cores. Others are compiled when first
# imported, or by each process again where PYTHONDONTWRITEBYTECODE is set.
COMPILED := accelerate aiohttp alembic anyio bitsandbytes boto3 botocore charset_normalizer cryptography \
	datasets dateutil dill fastapi filelock fsspec google gradio huggingface_hub jinja2 joblib \
	matplotlib mlflow mpmath multiprocess narwhals networkx numpy opentelemetry packaging pandas peft \
	PIL psutil pyarrow pydantic pydantic_settings pytz redis regex requests s3transfer scipy sklearn \
	sqlalchemy sqlparse starlette sympy tokenizers torch torchgen torchvision tqdm transformers triton \
	trl urllib3 uvicorn vllm

# Without this check, make would accept `profile=mine` and silently use the default.
SMALL := $(shell sed -nE 's/^([A-Z_]+) [?]=.*/\1/p' $(firstword $(MAKEFILE_LIST)) | tr A-Z a-z)
$(foreach name,$(SMALL),$(if $(filter command%,$(origin $(name))),\
	$(error $(name)= sets nothing; variables are written in capitals: $(shell echo $(name) | tr a-z A-Z)=$($(name)))))

# A value in single quotes, for the shell.
quoted = '$(subst ','\'',$(1))'

# The committed workflow lists the profiles of the repository. For another one the workflow is rendered
# into outputs/, so that no tracked file changes.
KNOWN := $(shell grep -qx -- '      - $(PROFILE)' workflows/pipeline.yaml && echo yes)
RENDERED := $(if $(KNOWN),workflows,outputs/workflows)

# MLflow is imported once for all steps of a run.
RUN := $(BIN)/python -m runner.run_local --preload loraline_cli.preload

# A test that hangs ends its process after ten minutes, and its failure says which test it was. That
# process is not replaced, or each new one would hang in the same test.
LIMITED := -o faulthandler_timeout=600 -o faulthandler_exit_on_timeout=true --max-worker-restart=0

# The run gets a name, so that the summary is of this run and not of one that was started meanwhile.
named = name="$(1)-$$(date +%Y%m%d-%H%M%S)-$$$$"

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
	@echo "Installing into $(VENV) with $(if $(UV),uv,pip): some minutes, once; most of it is torch, vLLM and MLflow"
	$(PYTHON) -m venv $(VENV)
	$(FETCH) --constraint constraints.txt torch
	$(FETCH) --constraint constraints.txt --editable '.[$(SERVE),dev]'
ifeq ($(SERVE),serve-cpu)
	$(BIN)/pip uninstall --quiet --yes torchaudio torchcodec
	$(FETCH) --no-deps ./images/cpu_repairs
endif
	@# Some packages contain templates that do not compile.
	@cd $(VENV)/lib/python3*/site-packages && ../../../bin/python -m compileall -q -j 0 $(COMPILED) >/dev/null 2>&1 || true
	@touch $@

.PHONY: pipeline
pipeline: install rendered  ## Run the pipeline here: make pipeline [PROFILE=smoke-vision] [DATA=folder] [SET=r=16]
	@$(call named,loraline-pipeline); $(RUN) $(RENDERED)/pipeline.yaml -p $(call quoted,profile=$(PROFILE)) \
		-p $(call quoted,data=$(DATA)) -p $(call quoted,set=$(SET)) --name "$$name" \
		&& $(BIN)/python workflows/summary.py "outputs/$$name"

.PHONY: sweep
sweep: install rendered  ## Compare profiles: make sweep PROFILES='["smoke-text", "mine"]' [PROFILE=smoke-text] [DATA=folder]
	@$(BIN)/python workflows/submit.py workflows/sweep.yaml --check -p $(call quoted,profile=$(PROFILE)) \
		-p $(call quoted,profiles=$(or $(PROFILES),["$(PROFILE)"])) -p $(call quoted,set=$(SET))
	@$(call named,loraline-sweep); $(RUN) $(RENDERED)/sweep.yaml -p $(call quoted,profile=$(PROFILE)) \
		-p $(call quoted,profiles=$(or $(PROFILES),["$(PROFILE)"])) \
		-p $(call quoted,data=$(DATA)) -p $(call quoted,set=$(SET)) --name "$$name" \
		&& $(BIN)/python workflows/summary.py "outputs/$$name"

.PHONY: rendered
rendered: install
	@$(if $(KNOWN),:,$(BIN)/python workflows/pipeline.py --kind Workflow --out outputs/workflows >/dev/null)

.PHONY: mlflow
mlflow: install  ## Open the MLflow UI on the local store: make mlflow [PORT=5000]
	@mkdir -p mlruns
	$(BIN)/mlflow server --backend-store-uri sqlite:///$(CURDIR)/mlruns/mlflow.db \
		--artifacts-destination $(CURDIR)/mlruns/artifacts --host 127.0.0.1 --port $(or $(PORT),5000)

.PHONY: serve
serve: install  ## Serve the last run's candidate, or a registered model, and the gateway: make serve [PORT=8000] [GATEWAY_PORT=8080] [MODEL=… ALIAS=champion]
	@test -n "$(MODEL)" || test -f $(MANIFEST) || { echo "serve: $(MANIFEST) does not exist; run make pipeline first (a rejected candidate has none), or name a registered model with MODEL="; exit 2; }
	@$(BIN)/python steps/serve_local.py $(if $(MODEL),--model $(call quoted,$(MODEL)),$(MANIFEST)) \
		$(if $(ALIAS),--alias $(call quoted,$(ALIAS))) --port $(or $(PORT),8000) --gateway-port $(or $(GATEWAY_PORT),8080)

.PHONY: ui
ui: install  ## Open the page in front of the local gateway: make ui [PORT=7860] [GATEWAY_PORT=8080]
	@UI_EXAMPLES_DIR="$${UI_EXAMPLES_DIR:-outputs/examples}" $(BIN)/python -m gateway.ui --port $(or $(PORT),7860) \
		$(if $(GATEWAY_PORT),--gateway http://127.0.0.1:$(GATEWAY_PORT))

.PHONY: test
test: install  ## Run the tests: nothing is fetched
	$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(LIMITED)

.PHONY: lint
lint: install  ## Check the rendered workflows against Argo's rules and those of production
	@$(BIN)/python workflows/lint.py

.PHONY: images
images:  ## Build the images: make images [BUILDER=buildah] [TAG=dev]
	$(BUILDER) build --build-arg GIT_SHA=$$(git rev-parse HEAD) -t localhost/loraline:$(TAG) -f images/cpu.Dockerfile .
	$(BUILDER) build --build-arg GIT_SHA=$$(git rev-parse HEAD) -t localhost/loraline-gpu:$(TAG) -f images/gpu.Dockerfile .
	$(BUILDER) build --build-arg BASE=localhost/loraline:$(TAG) -t localhost/loraline-serve:$(TAG) -f images/serve.Dockerfile .
	$(BUILDER) build -t localhost/loraline-gateway:$(TAG) -f images/gateway.Dockerfile .
	$(BUILDER) build -t localhost/loraline-page:$(TAG) -f images/page.Dockerfile .

# A Secret that an earlier cluster-apply made gets the keys that are new: $(call with_key,SECRET,KEY,VALUE).
with_key = kubectl -n $(NAMESPACE) get secret $(1) -o "jsonpath={.data.$(2)}" | grep -q . \
	|| kubectl -n $(NAMESPACE) patch secret $(1) --type merge -p "{\"stringData\":{\"$(2)\":\"$(3)\"}}"

# MLflow in the namespace does not start without its users' database and an administrator.
asked_of_mlflow = for key in mlflow/auth-store-uri mlflow/flask-secret-key loraline/MLFLOW_TRACKING_USERNAME loraline/MLFLOW_TRACKING_PASSWORD; do \
	kubectl -n $(NAMESPACE) get secret $${key%/*} -o "jsonpath={.data.$${key\#*/}}" | grep -q . \
	|| { echo "cluster-apply: the Secret $${key%/*} has no key $${key\#*/}, without which MLflow does not start; docs/cluster.md says how to make it"; exit 2; }; done

.PHONY: cluster-apply
cluster-apply:  ## Set up the namespace: make cluster-apply [OVERLAY=laptop, or a folder of your own]
	@test "$(NAMESPACE)" = loraline || test -d "$(OVERLAY)" || { echo "cluster-apply: workflows/cluster/ is about the namespace loraline; for $(NAMESPACE) write an overlay"; exit 2; }
	kubectl apply -k $(if $(wildcard workflows/cluster/$(OVERLAY)),workflows/cluster/$(OVERLAY),$(OVERLAY))
ifeq ($(OVERLAY),laptop)
	@kubectl -n $(NAMESPACE) get secret loraline >/dev/null 2>&1 || kubectl -n $(NAMESPACE) create secret generic loraline \
		--from-literal=AWS_ACCESS_KEY_ID=loraline --from-literal=AWS_SECRET_ACCESS_KEY=$$(openssl rand -hex 16)
	@kubectl -n $(NAMESPACE) get secret mlflow >/dev/null 2>&1 || kubectl -n $(NAMESPACE) create secret generic mlflow \
		--from-literal=backend-store-uri=sqlite:////data/mlflow/mlflow.db
	@$(call with_key,mlflow,auth-store-uri,sqlite:////data/mlflow/auth.db)
	@$(call with_key,mlflow,flask-secret-key,$$(openssl rand -hex 32))
	@$(call with_key,loraline,MLFLOW_TRACKING_USERNAME,loraline)
	@$(call with_key,loraline,MLFLOW_TRACKING_PASSWORD,$$(openssl rand -hex 16))
	kubectl -n $(NAMESPACE) rollout status deployment/mlflow --timeout=10m
else
	@kubectl -n $(NAMESPACE) get secret loraline >/dev/null || { echo "cluster-apply: make the Secret loraline with S3's keys; docs/cluster.md says how"; exit 2; }
	@! kubectl -n $(NAMESPACE) get deployment mlflow >/dev/null 2>&1 || { $(asked_of_mlflow); }
endif

.PHONY: submit
submit: install  ## Run on the cluster: make submit [WORKFLOW=sweep] [PROFILE=mine.yaml] [DATA=…] [SET=r=16] [PARAMS='resources=gpu-large …'] [CLASSES=classes.yaml]
	@$(BIN)/python workflows/submit.py workflows/$(WORKFLOW).yaml --namespace $(NAMESPACE) $(if $(CLASSES),--classes $(call quoted,$(CLASSES))) \
		$(if $(filter pipeline sweep,$(WORKFLOW)),-p $(call quoted,profile=$(PROFILE)) -p $(call quoted,data=$(DATA))) \
		$(if $(filter sweep,$(WORKFLOW)),-p $(call quoted,profiles=$(or $(PROFILES),["$(PROFILE)"]))) \
		$(if $(filter pipeline sweep,$(WORKFLOW)),-p $(call quoted,set=$(SET))) \
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
	$(BIN)/pytest -m 'cluster and not slow' tests/cluster

.PHONY: mutants
mutants: install  ## Break the code in many places and say which breakages no test notices: an hour
	$(BIN)/python tests/mutants/run.py

.PHONY: quality
quality: install  ## Format check, lint, spelling, layers, types, and whether the rendered workflows are current
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy
	$(BIN)/python workflows/pipeline.py --check
	$(BIN)/python workflows/prepare_shares.py --check
	$(BIN)/python workflows/lint.py

.PHONY: render
render: install  ## Write workflows/*.yaml anew, and the manifests that tests compare with
	$(BIN)/python workflows/pipeline.py
	$(BIN)/python workflows/prepare_shares.py
	$(BIN)/python tests/loraline/delivery/test_manifest_goldens.py

.PHONY: docs
docs: install  ## Build the documentation's site into outputs/site; links that lead nowhere are errors
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict && echo "outputs/site/index.html"

.PHONY: zoo
zoo: install  ## Run a real vLLM on each adapter of tests/zoo and record what it does: fifteen minutes
	$(BIN)/python tests/zoo/ask_vllm.py --again

.PHONY: clean
clean:  ## Remove outputs/ and mlruns/, with the MLflow store and its registry; keeps .venv
	@test ! -d mlruns -o -n "$(YES)" || { printf "Remove mlruns/ with every run and registered model? [y/N] " && \
		read -r answer && test "$$answer" = y; } || { echo "clean: nothing was removed; make clean YES=1 does not ask"; exit 2; }
	rm -rf outputs mlruns
