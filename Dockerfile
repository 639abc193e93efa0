# Images of diffseg. Targets: cpu, gpu and tensorrt (servers), and export (bundles and plans). See docs/containers.md.
#
#   docker build --target cpu --tag diffseg:cpu .
#
# Behind a mirror, or a proxy with its own certificate, pass two files to the build. They are not kept in the image:
#   --secret id=pip,src=pip.conf --secret id=ca,src=ca.crt    with this line in pip.conf: cert = /run/secrets/ca
# Python 3.13.15. `python scripts/release/pin_base.py` writes the digest that the tag has now.
ARG BASE=python:3.13-slim-trixie@sha256:9d2e5553305c7c7b0097999bb17187c69b921ccd6bc9d40e4bb5ebe652c00285

# An empty virtual environment, which is filled and then copied as a whole. The tools that build wheels are outside it.
FROM ${BASE} AS environment
ENV PATH=/opt/diffseg/bin:${PATH} \
    PIP_CONFIG_FILE=/run/secrets/pip \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_DEPS=1 \
    PIP_ONLY_BINARY=:all: \
    PIP_REQUIRE_HASHES=1
COPY containers/build.lock /locks/
RUN --mount=type=secret,id=pip --mount=type=secret,id=ca \
    --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /opt/diffseg && \
    pip install --target /opt/tools -r /locks/build.lock

# The program itself, in a separate root. A change of the code then replaces one small layer and reinstalls nothing.
FROM environment AS program
COPY . /source
RUN PIP_REQUIRE_HASHES=0 PYTHONPATH=/opt/tools pip wheel --no-build-isolation --wheel-dir /wheels /source && \
    PIP_REQUIRE_HASHES=0 pip install --no-index --no-warn-script-location --root /program /wheels/diffseg-*.whl

FROM environment AS cpu-packages
COPY containers/cpu.lock /locks/
RUN --mount=type=secret,id=pip --mount=type=secret,id=ca \
    --mount=type=cache,target=/root/.cache/pip \
    pip install -r /locks/cpu.lock && \
    pip check && \
    pip uninstall --yes pip

FROM environment AS gpu-packages
COPY containers/gpu.lock /locks/
RUN --mount=type=secret,id=pip --mount=type=secret,id=ca \
    --mount=type=cache,target=/root/.cache/pip \
    pip install -r /locks/gpu.lock && \
    pip check && \
    pip uninstall --yes pip

# Two packages have no wheels and are built here. They are a few lines of Python that wrap NVIDIA's libraries.
FROM environment AS tensorrt-packages
ARG NVIDIA_INDEX=https://pypi.nvidia.com
COPY containers/nvidia.lock containers/tensorrt.lock /locks/
RUN --mount=type=secret,id=pip --mount=type=secret,id=ca \
    --mount=type=cache,target=/root/.cache/pip \
    pip install --index-url "${NVIDIA_INDEX}" -r /locks/nvidia.lock && \
    PYTHONPATH=/opt/tools pip install --no-build-isolation --no-binary tensorrt-cu13,tensorrt-rtx-cu13 \
        -r /locks/tensorrt.lock && \
    pip check && \
    pip uninstall --yes pip

# The build tools are installed into this environment, because PyTorch needs setuptools as well.
FROM environment AS export-packages
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY containers/torch.lock containers/export.lock /locks/
RUN --mount=type=secret,id=pip --mount=type=secret,id=ca \
    --mount=type=cache,target=/root/.cache/pip \
    pip install --index-url "${TORCH_INDEX}" -r /locks/torch.lock && \
    pip install -r /locks/build.lock && \
    pip install --no-build-isolation --no-binary tensorrt-rtx-cu13 -r /locks/export.lock && \
    pip check && \
    pip uninstall --yes pip

# The base of all images. Only /cache is written to: it holds plans, and the files that GPU libraries write to $HOME.
FROM ${BASE} AS base
ARG BASE
LABEL org.opencontainers.image.title="diffseg" \
      org.opencontainers.image.description="Zero-shot segmentation from the self-attention of Stable Diffusion" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${BASE}"
ENV PATH=/opt/diffseg/bin:${PATH} \
    HOME=/cache \
    DIFFSEG_CACHE=/cache \
    PYTHONUNBUFFERED=1
# The official Python images have no compiled modules, and none can be written later. Without them, a start takes 2 s more.
RUN python3 -m compileall -q -x '/(test|lib2to3|dist-packages|site-packages)/' \
    "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"
RUN install --directory --owner 10001 --group 10001 /cache
VOLUME /cache
USER 10001:10001
STOPSIGNAL SIGTERM
ENTRYPOINT ["diffseg"]

# 0.0.0.0 is the address of the container. On it, the server does not start without a token, except with --no-token.
FROM base AS server
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-IS", "-c", "import http.client, sys; \
server = http.client.HTTPConnection('127.0.0.1', 8000, timeout=4); \
server.request('GET', '/v2/health/ready'); \
sys.exit(server.getresponse().status != 200)"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000"]

FROM server AS gpu
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=gpu-packages /opt/diffseg /opt/diffseg
COPY --from=program /program /

FROM server AS tensorrt
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=tensorrt-packages /opt/diffseg /opt/diffseg
COPY --from=program /program /

FROM base AS export
COPY --from=export-packages /opt/diffseg /opt/diffseg
COPY --from=program /program /
CMD ["--help"]

# A build without --target builds the last stage.
FROM server AS cpu
COPY --from=cpu-packages /opt/diffseg /opt/diffseg
COPY --from=program /program /
