# Training and sampling in a container. EXTRAS: "gpu,gcs" for NVIDIA GPUs (CUDA 13 wheels), "tpu,gcs" for TPUs, "gcs" for CPUs.
#
#   docker build --tag=vdt_jax --build-arg=EXTRAS=gpu,gcs .
#   docker run --gpus=all --volume="$PWD/runs:/vdt/runs" vdt_jax train.py --config=configs/moving_digits.py
FROM python:3.12-slim

ARG EXTRAS="gpu,gcs"
WORKDIR /vdt
COPY . .
RUN pip install --no-cache-dir --editable ".[$EXTRAS]" --constraint constraints.txt

ENTRYPOINT ["python"]
CMD ["-m", "vdt_jax"]
