# The gateway in front of vLLM: no model library, no MLflow, no GPU.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS requirements
COPY pyproject.toml ./
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
    print(*p['optional-dependencies']['gateway'], sep='\n')" > /requirements.txt

FROM ${BASE}

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

# A font for exported PDFs.
RUN apt-get update && apt-get install --yes --no-install-recommends fonts-dejavu-core \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /app

COPY --from=requirements /requirements.txt ./
COPY constraints.txt ./
RUN pip install --constraint constraints.txt --requirement requirements.txt

# The version is read from it.
COPY pyproject.toml ./
COPY loraline loraline
COPY gateway gateway
# Files of a checkout may be readable by their owner only; the image has another user.
RUN chmod -R a+rX .

# The root file system may be read-only: jobs and sessions go to GATEWAY_DATA_DIR, a volume.
ENV HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 GATEWAY_DATA_DIR=/data
RUN useradd --uid 8737 --home-dir /tmp --no-create-home loraline && install -d -o 8737 /data
USER 8737

# The build fails if the gateway does not start, or if it imports a model library.
RUN python -c "import sys, gateway.server; \
    sys.exit(bool({'torch', 'transformers', 'mlflow'} & set(sys.modules)))" \
    && python -m gateway --help >/dev/null

EXPOSE 8080
CMD ["python", "-m", "gateway", "serve"]
