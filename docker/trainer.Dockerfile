# The trainer on GPUs: verl's published CUDA image (torch, vLLM, flash-attention) with verl from PyPI and this package.
# From the repository's root: docker build -f docker/trainer.Dockerfile -t research-rl-trainer .
# Another CUDA or vLLM: --build-arg BASE=verlai/verl:TAG (https://hub.docker.com/r/verlai/verl)
ARG BASE=verlai/verl:vllm024.dev2
FROM ${BASE}
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 HYDRA_FULL_ERROR=1
WORKDIR /app
# the image brings vLLM 0.24.0, torch 2.11.0 and flash-attention; verl itself and what it has grown since come without touching these
RUN pip install --no-deps verl==0.9.1 TransferQueue==0.1.11 && \
    pip install "transformers==5.9.0" "tensordict>=0.8,<=0.10,!=0.9" "tenacity>=9" "httpx>=0.27" "wrapt>=1.17" "openai>=1" "tensorboard>=2.18" "psutil>=6"
COPY pyproject.toml README.md LICENSE ./
COPY research_rl research_rl
COPY rag_serving rag_serving
COPY data_preprocess data_preprocess
COPY evaluation evaluation
COPY recipes recipes
RUN pip install --no-deps . && python -c "import research_rl.train, research_rl.methods.r1_searcher" && \
    research-rl doctor
ENTRYPOINT ["python", "-m", "research_rl.train"]
CMD ["--help"]
