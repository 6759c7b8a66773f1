# Every step without a GPU, training and evaluation of the smoke profiles among them, MLflow's server,
# and the Kubernetes client of deploy_vllm --apply.
ARG BASE=python:3.11-slim-bookworm

# The requirements in a file of their own: other changes to pyproject.toml do not rebuild the large layer.
FROM ${BASE} AS requirements
COPY pyproject.toml ./
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
    extras = p['optional-dependencies']; \
    print(*p['dependencies'], *extras['cluster'], *extras['mlflow-server'], sep='\n')" > /requirements.txt

FROM ${BASE}

# An index with the CPU build of torch, where pip's own index has none.
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

WORKDIR /app

COPY --from=requirements /requirements.txt ./
COPY constraints.txt ./
RUN pip install --constraint constraints.txt torch==2.13.0 \
    && pip install --constraint constraints.txt --requirement requirements.txt
COPY images/cpu_repairs images/cpu_repairs
RUN pip uninstall --yes torchaudio torchcodec \
    && pip install --no-deps ./images/cpu_repairs

COPY pyproject.toml README.md LICENSE ./
COPY gateway gateway
COPY loraline loraline
COPY loraline_cli loraline_cli
COPY runner runner
COPY lora_profiles lora_profiles
COPY steps steps
COPY workflows workflows
RUN pip install --no-deps .
COPY test_data test_data
# Files of a checkout may be readable by their owner only; the image has another user.
RUN chmod -R a+rX .

ARG GIT_SHA=""
# The root file system may be read-only, so the home is /tmp.
ENV HOME=/tmp PYTHONUNBUFFERED=1 GIT_PYTHON_REFRESH=quiet LORALINE_GIT_SHA=${GIT_SHA}
# The user has a name because Python's getpass wants one, and a number because Kubernetes does.
RUN useradd --uid 8737 --home-dir /tmp --no-create-home loraline
USER 8737

# The build fails if a step does not start.
RUN for step in steps/*.py; do python "$step" --help >/dev/null || exit 1; done
