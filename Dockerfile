# The service in a container: `docker build -t apikeyrouter .`
# Nothing of the source tree but the wheel built from it gets into the image. Runs as a user without a name, on a root
# file system that may be read-only; what it writes, if anything (an embedded Valkey's data), goes below /data.

ARG PYTHON_IMAGE=python:3.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY . .
RUN python -m venv /opt/build && /opt/build/bin/pip install -q build -c constraints.txt
RUN /opt/build/bin/python -m build --wheel --outdir /opt/dist .
RUN python -m venv /opt/apikeyrouter
RUN /opt/apikeyrouter/bin/pip install -q -c constraints.txt "$(ls /opt/dist/*.whl)[proxy,dashboard,tracing,mongodb]"
RUN /opt/apikeyrouter/bin/pip uninstall -q -y pip && /opt/apikeyrouter/bin/python -m compileall -q /opt/apikeyrouter

FROM ${PYTHON_IMAGE}
COPY --from=build /opt/apikeyrouter /opt/apikeyrouter
ENV PATH=/opt/apikeyrouter/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PROXY_HOST=0.0.0.0 \
    PROXY_PORT=8000 \
    APIKEYROUTER_DATA_DIR=/data
RUN install -d -o 10001 -g 10001 -m 0700 /data
VOLUME /data
WORKDIR /
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["/opt/apikeyrouter/bin/python", "-m", "apikeyrouter_proxy.probe", "ready"]
ENTRYPOINT ["/opt/apikeyrouter/bin/apikeyrouter"]
CMD ["serve"]
