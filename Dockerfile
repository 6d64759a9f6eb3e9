# docker build -t mlm .                                      for CPUs
# docker build -t mlm --build-arg TORCH_BACKEND=cu128 .      for NVIDIA GPUs (auto, cu126, rocm6.4, ...: as uv names them)
# docker run --rm -v "$PWD/runs:/work/runs" mlm accelerate launch -m launch.train --recipe quickstart
FROM python:3.12-slim
ARG TORCH_BACKEND=cpu

# The compiler is for --torch_compile.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir uv

WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY data data
COPY train_loop train_loop
COPY launch launch
RUN uv pip install --system --no-cache --torch-backend "$TORCH_BACKEND" --constraint constraints.txt .

RUN useradd --create-home --uid 1000 user && mkdir /work && chown user /work
USER user
WORKDIR /work
CMD ["mlm"]
