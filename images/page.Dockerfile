# The page in a browser: Gradio, and the folder gateway/ui; no model library, no MLflow, no key.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS requirements
COPY pyproject.toml ./
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
    print(*p['optional-dependencies']['ui'], sep='\n')" > /requirements.txt

FROM ${BASE}

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

WORKDIR /app

COPY --from=requirements /requirements.txt ./
COPY constraints.txt ./
RUN pip install --constraint constraints.txt --requirement requirements.txt

COPY gateway/__init__.py gateway/
COPY gateway/ui gateway/ui
# Files of a checkout may be readable by their owner only; the image has another user.
RUN chmod -R a+rX .

# The root file system may be read-only: uploads go to /uploads, a volume with a size.
ENV HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 GRADIO_TEMP_DIR=/uploads \
    UI_HOST=0.0.0.0
RUN useradd --uid 8737 --home-dir /tmp --no-create-home loraline && install -d -m 0700 -o 8737 /uploads
USER 8737

# The build fails if the page does not start, or if it imports a model library.
RUN python -c "import sys; from gateway.ui import app, settings; app.create_app(settings.Settings()); \
    sys.exit(bool({'torch', 'transformers', 'mlflow', 'loraline'} & set(sys.modules)))"

EXPOSE 7860
CMD ["python", "-m", "gateway.ui"]
