# The image of Ray heads and workers that train.
# Build from the repository's root: docker build -f infra/docker/train.Dockerfile -t hepalign-train .
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
LABEL org.opencontainers.image.title="hepalign-train" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.description="Hepalign training: Ray head and workers. Research use only."
# A volume takes the owner of the folder that it is first mounted on; without one it would be root's.
RUN groupadd --gid 10001 hepalign && useradd --uid 10001 --gid 10001 --create-home hepalign \
 && install --directory --owner=10001 --group=10001 /home/hepalign/runs
COPY --from=build /opt/hepalign /opt/hepalign
ENV PATH=/opt/hepalign/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false \
    RAY_AUTH_MODE=token
WORKDIR /home/hepalign
COPY --chown=10001:10001 jobs jobs
COPY --chown=10001:10001 mlflow mlflow
USER 10001:10001
CMD ["hepalign", "doctor"]
