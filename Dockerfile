# Build:  docker build -t segcft .
#         docker build -t segcft:cuda --build-arg BASE=pytorch/pytorch:2.13.0-cuda13.0-cudnn9-runtime .
# Demo:   mkdir -p runs && docker run --rm --user "$(id -u)" -v "$PWD/runs:/data" segcft
# Stage:  docker run --rm --user "$(id -u)" -v "$PWD/runs:/data" segcft python -m monai.bundle run \
#             --config_file /app/bundles/lung_heart_segmentor/configs/train.json \
#             --bundle_root /app/bundles/lung_heart_segmentor \
#             --datalist /data/prepared/datalist.json --output_dir /data/segmentor
# With CUDA, add --gpus all. The default image runs on the CPU; to spare it the CUDA libraries that pip brings along with
# torch on Linux, give the index of PyTorch's CPU wheels (its installation page names it) as --build-arg TORCH_INDEX=….
# Lossless JPEG and JPEG-LS in DICOM, and Excel, need --build-arg EXTRAS=[formats], a Dask cluster EXTRAS=[formats,dask].
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

ARG TORCH_INDEX=""
ARG EXTRAS=""

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_BREAK_SYSTEM_PACKAGES=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    HOME=/tmp \
    USER=segcft \
    MPLCONFIGDIR=/tmp/matplotlib

WORKDIR /app
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY segcft_ext segcft_ext
COPY data_prep data_prep
COPY bundles bundles
COPY pretrained pretrained
# A torch of the pinned version that is in the base image, or comes from the given index, satisfies the constraint.
RUN torch=$(grep -m 1 '^torch==' constraints.txt) \
    && pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} -c constraints.txt "$torch" \
    && pip install -c constraints.txt -e ".${EXTRAS}"

RUN useradd --create-home --uid 1000 --non-unique segcft && mkdir /data && chown 1000 /data
USER 1000
WORKDIR /data
VOLUME /data

CMD ["python", "-m", "segcft_ext.chain", "demo", "/data/demo"]
