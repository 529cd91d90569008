#!/bin/bash
# Trains on a GKE cluster with TPUs that xpk created, from an image that the Dockerfile builds with EXTRAS=tpu,gcs.
#
#   docker build --tag="$IMAGE" --build-arg=EXTRAS=tpu,gcs . && docker push "$IMAGE"
#   IMAGE=... PROJECT=... ZONE=... CLUSTER=... TYPE=v5litepod-256 launch/xpk.sh \
#     --config=configs/sky_timelapse.py --workdir=gs://BUCKET/runs/sky --config.data.path=/mnt/sky --config.vae=/mnt/sd-vae-ft-ema
#
# Arguments are those of train.py. /mnt is a volume of the cluster (`xpk storage attach`) with the videos and the
# autoencoder. An interrupted workload is restarted up to 20 times and resumes.
set -euo pipefail
: "${IMAGE:?docker image}" "${PROJECT:?Google Cloud project}" "${ZONE:?zone}" "${CLUSTER:?cluster}" "${TYPE:?TPU type}"

xpk workload create --workload="${WORKLOAD:-vdt}" --project="$PROJECT" --zone="$ZONE" --cluster="$CLUSTER" \
  --tpu-type="$TYPE" --docker-image="$IMAGE" --max-restarts=20 \
  --command="cd /vdt && python train.py $(printf '%q ' "$@")"
