# In the place of the steps' image and of vLLM's: both take minutes to build, and neither is under test.
ARG BASE=localhost/loraline-gateway:dev
FROM ${BASE}
# The context is the folder tests.
USER 0
COPY gateway/stub.py cluster/stand_in.py /stand-in/
RUN mkdir -p steps && ln -s /stand-in/stand_in.py steps/fetch_adapter.py \
    && chmod -R a+rX /stand-in && chmod 755 /stand-in/stand_in.py \
    && ln -s /stand-in/stand_in.py /usr/local/bin/vllm
USER 8737
