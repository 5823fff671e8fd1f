# Build:  docker build -t segcft .
#         docker build -t segcft:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
# Demo:   mkdir -p runs && docker run --rm --user "$(id -u)" -v "$PWD/runs:/data" segcft
# Stage:  docker run --rm --user "$(id -u)" -v "$PWD/runs:/data" segcft python -m monai.bundle run \
#             --config_file /app/bundles/lung_heart_segmentor/configs/train.json \
#             --bundle_root /app/bundles/lung_heart_segmentor \
#             --datalist /data/prepared/datalist.json --output_dir /data/segmentor
# With CUDA, add --gpus all.
FROM python:3.11-slim-bookworm

# Where torch comes from: builds for the CPU, or for a version of CUDA, which bring the libraries that they need.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    HOME=/tmp \
    USER=segcft \
    MPLCONFIGDIR=/tmp/matplotlib

WORKDIR /app
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY segcft_ext segcft_ext
COPY data_prep data_prep
COPY bundles bundles
# pip prefers 2.13.0+cpu of this index to the plain 2.13.0 of the other, and then finds torch installed.
RUN torch=$(grep -m 1 '^torch==' constraints.txt) \
    && pip install --index-url "$TORCH_INDEX" --extra-index-url https://pypi.org/simple -c constraints.txt "$torch" \
    && pip install -c constraints.txt -e .

RUN useradd --create-home --uid 1000 segcft && mkdir /data && chown 1000 /data
USER 1000
WORKDIR /data
VOLUME /data

CMD ["python", "-m", "segcft_ext.chain", "demo", "/data/demo"]
