# The retrieval service. From the repository's root: docker build -f docker/retrieval.Dockerfile -t research-rl-retrieval .
# With a CUDA torch (dense retrieval on a GPU): add --build-arg DEVICE=cuda
# Another Python (3.11 to 3.13): --build-arg PYTHON=3.13
ARG PYTHON=3.11
FROM python:${PYTHON}-slim
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
WORKDIR /app
COPY requirements/torch-cpu.txt requirements/serve.txt requirements/
ARG DEVICE=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN if [ "${DEVICE}" = "cpu" ]; then \
      pip install --no-deps --index-url "${TORCH_INDEX}" -r requirements/torch-cpu.txt; \
    else \
      pip install -r requirements/torch-cpu.txt; \
    fi \
    && pip install --no-deps -r requirements/serve.txt
COPY pyproject.toml README.md LICENSE ./
COPY research_rl research_rl
COPY rag_serving rag_serving
COPY data_preprocess data_preprocess
COPY evaluation evaluation
RUN pip install --no-deps . && useradd --create-home --uid 10001 service
USER 10001
ENV RAG_SERVING_HOST=0.0.0.0 RAG_SERVING_PORT=8000 RAG_SERVING_INDEX=/index RAG_SERVING_LOG_FORMAT=json
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=300s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
ENTRYPOINT ["rag-serving"]
CMD ["serve"]
