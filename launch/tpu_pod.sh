#!/bin/bash
# Trains on a TPU slice that gcloud creates, from an image that the Dockerfile builds with EXTRAS=tpu,gcs.
#
#   docker build --tag="$IMAGE" --build-arg=EXTRAS=tpu,gcs . && docker push "$IMAGE"
#   IMAGE=... SLICE=vdt ZONE=... TYPE=v5litepod-16 VERSION=v2-alpha-tpuv5-lite launch/tpu_pod.sh \
#     --config=configs/sky_timelapse.py --workdir=gs://BUCKET/runs/sky --config.data.path=/mnt/sky --config.vae=/mnt/sd-vae-ft-ema
#
# Arguments are those of train.py. /mnt is a file system that all hosts mount, with the videos and the autoencoder. The
# hosts must be allowed to pull the image. Run the command again after a preemption: it replaces the slice, and the run
# resumes. To end: gcloud compute tpus tpu-vm delete "$SLICE" --zone="$ZONE"
set -euo pipefail
: "${IMAGE:?docker image}" "${SLICE:?name of the slice}" "${ZONE:?zone}" "${TYPE:?accelerator type}" "${VERSION:?runtime version}"

tpus() {
  command=$1
  shift
  gcloud compute tpus tpu-vm "$command" "$SLICE" --zone="$ZONE" "$@"
}

state=$(tpus describe --format='value(state)' 2>/dev/null || echo MISSING)
if [ "$state" = PREEMPTED ]; then
  tpus delete --quiet
  state=MISSING
fi
if [ "$state" = MISSING ]; then
  tpus create --accelerator-type="$TYPE" --version="$VERSION" --spot
fi
tpus ssh --worker=all --command="sudo docker run --rm --privileged --network=host --stop-timeout=30 \
  --volume=/mnt:/mnt $IMAGE train.py $(printf '%q ' "$@")"
