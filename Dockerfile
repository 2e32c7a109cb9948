# syntax=docker/dockerfile:1
# delineate serve, for a CPU (the usual target) or for a GPU of NVIDIA's:
#
#   docker build -t delineate .
#   docker build -t delineate:cuda --target cuda --build-arg PIP_INDEX_URL=... .
#
# torch is pinned and installed first, as the Makefile does, so that nothing that follows chooses another. Which build of
# it comes, with CUDA or without, is a matter of the package index: PIP_INDEX_URL names the one that has yours.

ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS installed
ARG TORCH=torch==2.13.0
ARG PIP_INDEX_URL
RUN python -m venv /opt/delineate && /opt/delineate/bin/pip install --no-cache-dir "${TORCH}"
WORKDIR /opt/delineate/source
COPY pyproject.toml README.md LICENSE hatch_build.py ./
COPY src ./src
# editable, since only that goes without the viewer of `delineate review`, which npm would have to fetch
RUN /opt/delineate/bin/pip install --no-cache-dir --editable '.[serve,dicom]' \
    && /opt/delineate/bin/python -m compileall -q src

# What both variants have in common. The root may be read-only: what is written goes to /results, and little to /tmp.
FROM python:${PYTHON} AS runtime
ENV PATH=/opt/delineate/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    HF_HUB_OFFLINE=1
RUN groupadd --gid 10001 delineate \
    && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin delineate \
    && install --directory --owner=10001 --group=10001 --mode=0700 /results
COPY --from=installed /opt/delineate /opt/delineate
WORKDIR /results
VOLUME ["/results"]
EXPOSE 8000
STOPSIGNAL SIGTERM
USER 10001:10001
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["delineate"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000", "--results", "/results", "--log", "json"]

FROM runtime AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM runtime AS cpu
