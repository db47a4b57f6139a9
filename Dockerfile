# Two images of the same program, for a processor and for NVIDIA GPUs:
#   docker build --target cpu  --tag foveal:cpu .
#   docker build --target cuda --tag foveal:cuda .

FROM python:3.11-slim-bookworm AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY src ./src
COPY benchmarks/foveal_bench ./benchmarks/foveal_bench
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim-bookworm AS common
ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    HF_HOME=/data/.cache/huggingface
RUN useradd --create-home --uid 10001 foveal \
    && mkdir /data \
    && chown foveal /data
WORKDIR /data
COPY deploy/healthcheck.py /usr/local/lib/foveal/healthcheck.py
# Only a container that serves can be unhealthy; one that trains is passed over.
HEALTHCHECK --interval=30s --timeout=5s --start-period=5m --retries=3 \
    CMD ["python", "/usr/local/lib/foveal/healthcheck.py"]
EXPOSE 8000
ENTRYPOINT ["foveal"]
CMD ["--help"]

FROM common AS cpu
COPY requirements.txt /tmp/requirements.txt
COPY --from=wheel /wheels /tmp/wheels
RUN pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu \
    && pip install --constraint /tmp/requirements.txt "$(ls /tmp/wheels/*.whl)[serve]" \
    && rm -r /tmp/requirements.txt /tmp/wheels
USER 10001

FROM common AS cuda
# Kernels that PyTorch writes while it runs (flex attention) need a C compiler.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc g++ libc6-dev \
    && rm -rf /var/lib/apt/lists/*
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY requirements.txt /tmp/requirements.txt
COPY --from=wheel /wheels /tmp/wheels
# PyTorch's ordinary wheel brings CUDA along; the host brings the driver.
RUN pip install torch==2.13.0 \
    && pip install --constraint /tmp/requirements.txt "$(ls /tmp/wheels/*.whl)[serve,deepspeed]" \
    && rm -r /tmp/requirements.txt /tmp/wheels
USER 10001
