# The image of the serving endpoint: the library, the service and its configuration, no training jobs.
# Build from the repository's root: docker build -f infra/docker/serve.Dockerfile -t hepalign-serve .
FROM python:3.11.13-slim-bookworm AS build
WORKDIR /build
COPY infra/docker/runtime.lock ./
# `cpu` with a lock made for it: docs/how-to/images.md
ARG UV_TORCH_BACKEND
# The tools stay behind in this stage. Bytecode comes along, for who runs the image may not write it.
# The lock is whole. Resolved anew it would ask for TensorFlow: the exception stands in pyproject.toml, not here yet.
RUN python -m venv /opt/tools \
 && /opt/tools/bin/pip install --no-cache-dir uv==0.13.9 hatchling==1.33.0 \
 && python -m venv /opt/hepalign \
 && /opt/tools/bin/uv pip install --python /opt/hepalign/bin/python --no-cache --no-deps --compile-bytecode --require-hashes --requirements runtime.lock
COPY pyproject.toml README.md LICENSE ./
COPY platform platform
COPY serve serve
RUN /opt/tools/bin/hatchling build --target wheel --directory dist \
 && /opt/tools/bin/uv pip install --python /opt/hepalign/bin/python --no-cache --no-deps --compile-bytecode dist/*.whl

FROM python:3.11.13-slim-bookworm
LABEL org.opencontainers.image.title="hepalign-serve" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.description="Hepalign serving endpoint. Research use only."
# A volume takes the owner of the folder that it is first mounted on; without one it would be root's.
RUN groupadd --gid 10001 hepalign && useradd --uid 10001 --gid 10001 --create-home hepalign \
 && install --directory --owner=10001 --group=10001 /home/hepalign/data
COPY --from=build /opt/hepalign /opt/hepalign
ENV PATH=/opt/hepalign/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false \
    MALLOC_ARENA_MAX=1 \
    RAY_AUTH_MODE=token
WORKDIR /home/hepalign
COPY --chown=10001:10001 serve/config config
USER 10001:10001
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
CMD ["hepalign", "serve", "--config", "config/hospital.yaml"]
