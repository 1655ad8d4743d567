# The server with the shipped model, on a processor:
#   docker build -t open-gigagan .
#   docker run --rm -p 127.0.0.1:8000:8000 -e GIGAGAN_API_KEYS="$(openssl rand -hex 24)" open-gigagan
# It listens to all of the container's network, so it starts only with a key.
FROM python:3.11-slim AS build
WORKDIR /build
RUN python -m venv /app && \
    /app/bin/pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu "torch==2.13.0"
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN /app/bin/pip install --no-cache-dir ".[serve]"

FROM python:3.11-slim
COPY --from=build /app /app
RUN useradd --create-home --uid 10001 gigagan
USER 10001
ENV PATH="/app/bin:$PATH" PYTHONUNBUFFERED=1
EXPOSE 8000
STOPSIGNAL SIGTERM
# Readiness needs a key; what lives is replaced by nobody but the program itself.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/live', timeout=2)"]
ENTRYPOINT ["gigagan", "serve", "--host", "0.0.0.0", "--port", "8000"]
