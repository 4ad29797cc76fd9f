# Images of condconv-serve. Targets: cpu (the default), gpu, sbom.
#
#   docker build --target cpu -t condconv-serve:cpu .
#   docker build --target gpu -t condconv-serve:gpu .
#   docker build --target sbom --output sbom .          (BuildKit) what is in the cpu image, in CycloneDX
#
# Nothing here needs BuildKit but --output. Name the target: the classic builder makes every stage on the way.
# Any image with Python 3.11 to 3.13 and its venv module will do as a base.
ARG BASE_IMAGE=python:3.12.12-slim-bookworm@sha256:593bd06efe90efa80dc4eee3948be7c0fde4134606dd40d8dd8dbcade98e669c

# ---- what both images start from -------------------------------------------------------------------------------------
FROM ${BASE_IMAGE} AS base
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="condconv-serve" \
      org.opencontainers.image.description="Serves CondConv image classifiers and detectors over HTTP and gRPC, batched in one pass" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# Bytecode is made once, below.
ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONPATH=/opt/condconv \
    PATH=/opt/condconv/bin:/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    CONDCONV_HOST=0.0.0.0 \
    CONDCONV_GRPC_PORT=8001 \
    CONDCONV_MODEL_STORE=/models \
    CONDCONV_LOG_FORMAT=json \
    # Writable even where the root file system is read-only.
    TMPDIR=/dev/shm \
    MPLCONFIGDIR=/dev/shm/matplotlib
WORKDIR /
EXPOSE 8000 8001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python3", "/usr/local/lib/condconv/healthcheck.py"]
ENTRYPOINT ["condconv"]
CMD ["serve"]

# ---- dependencies, renewed only when their lock files change ---------------------------------------------------------
FROM ${BASE_IMAGE} AS tools
# Another index of packages than PyPI, if need be; stays in this stage.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
# Only files whose hashes are in requirements/ are installed, wherever they come from.
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_QUIET=1
# For its strip, which takes 200 MB off TensorFlow. Debian has one version of it at a time.
# hadolint ignore=DL3008
RUN apt-get update -qq && apt-get install -qq -y --no-install-recommends binutils && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/tools && python3 -m venv --without-pip /opt/venv
WORKDIR /src
COPY requirements ./requirements

FROM tools AS cpu-packages
COPY deploy/docker/slim.py /opt/tools/
# Any of those with a file in requirements/: heif adds photos in HEIC, for example.
ARG EXTRAS=cpu,telemetry
RUN IFS=,; for name in base ${EXTRAS}; do set -- "$@" --requirement "requirements/${name}.txt"; done \
    && /opt/tools/bin/pip --python /opt/venv/bin/python3 install --require-hashes "$@" \
    && python3 /opt/tools/slim.py /opt/venv

# Built by what is locked, too, which is installed in this stage only: the native kernels' compiler among it.
FROM tools AS code
RUN /opt/tools/bin/pip --python /opt/venv/bin/python3 install --require-hashes \
        --requirement requirements/build.txt --requirement requirements/compiler.txt
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY service ./service
RUN arch="$(uname -m)" && WHEEL_ARCH="${arch}" /opt/tools/bin/pip --python /opt/venv/bin/python3 install \
        --no-deps --no-build-isolation --target /opt/condconv .

# ---- the image for CPUs ----------------------------------------------------------------------------------------------
FROM base AS cpu
COPY --from=cpu-packages /opt/venv /opt/venv
COPY model_store /models
COPY deploy/docker/healthcheck.py /usr/local/lib/condconv/healthcheck.py
COPY --from=code /opt/condconv /opt/condconv
USER 10001:10001

# ---- what is in it: python.cdx.json (CycloneDX) and debian.tsv -------------------------------------------------------
FROM cpu-packages AS sbom-tools
COPY --from=cpu /var/lib/dpkg/status /opt/dpkg/status
RUN /opt/tools/bin/pip install --require-hashes --requirement requirements/sbom.txt && mkdir /sbom \
    && /opt/tools/bin/cyclonedx-py environment --output-format JSON --output-file /sbom/python.cdx.json \
        /opt/venv/bin/python3 \
    && dpkg-query --admindir=/opt/dpkg --show >/sbom/debian.tsv

FROM scratch AS sbom
COPY --from=sbom-tools /sbom /

# ---- the image for NVIDIA GPUs; the host needs the NVIDIA Container Toolkit ------------------------------------------
FROM tools AS gpu-packages
COPY deploy/docker/slim.py /opt/tools/
RUN /opt/tools/bin/pip --python /opt/venv/bin/python3 install --require-hashes \
        --requirement requirements/base.txt --requirement requirements/gpu.txt --requirement requirements/telemetry.txt \
    && python3 /opt/tools/slim.py /opt/venv

FROM base AS gpu
COPY --from=gpu-packages /opt/venv /opt/venv
COPY model_store /models
COPY deploy/docker/healthcheck.py /usr/local/lib/condconv/healthcheck.py
COPY --from=code /opt/condconv /opt/condconv
USER 10001:10001

# ---- without --target ------------------------------------------------------------------------------------------------
FROM cpu
