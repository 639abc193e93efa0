# Images of diffseg. Targets: cpu, gpu, tensorrt (servers), export (checkpoint to bundle to plans); docs/containers.md.
#
#   docker build --target cpu --tag diffseg:cpu .
#
# Behind a mirror, or a proxy with a certificate of its own, lend the build two files, which stay out of the image:
#   --secret id=pip,src=pip.conf --secret id=ca,src=ca.crt    and pip.conf says: cert = /run/secrets/ca
ARG BASE=python:3.13-slim-trixie

# An empty virtual environment, to be filled and copied whole; and beside it what builds wheels, which stays behind.
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

# The program itself, under a root of its own: a change of code makes one small layer, and installs nothing again.
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

# Two packages have no wheels: a few lines of Python around NVIDIA's libraries, built here.
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

# Here what builds wheels goes into the environment: PyTorch needs setuptools, too.
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

# What all images share. All that is ever written lies under /cache: plans, and what GPU libraries keep in the home.
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
# The official Python images come without compiled modules, and nobody could write them later: 2 s at every start.
RUN python3 -m compileall -q -x '/(test|lib2to3|dist-packages|site-packages)/' \
    "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"
RUN install --directory --owner 10001 --group 10001 /cache
VOLUME /cache
USER 10001:10001
STOPSIGNAL SIGTERM
ENTRYPOINT ["diffseg"]

# 0.0.0.0 is the container's own; the server refuses it without a token, unless it is told --no-token.
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

# The last one is what a build without --target makes.
FROM server AS cpu
COPY --from=cpu-packages /opt/diffseg /opt/diffseg
COPY --from=program /program /
