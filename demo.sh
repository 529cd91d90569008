# `make demo`: a short training that stops and resumes, then samples of all seven tasks, measured and shown on one page.
set -eu
run=runs/demo
rm -rf "$run"
train="$BIN/python train.py --config=configs/moving_digits.py --workdir=$run/training
  --config.total_steps=200 --config.log_every=20 --config.preview.every=0 --config.learning_rate.warmup_steps=50"
echo "== a short training that stops half-way ..."
$train --stop_after=100
echo "== ... and goes on where it was left"
$train
echo "== all seven tasks on held-out clips"
$BIN/python evaluate.py --checkpoint="$run/training" --output="$run" --steps=25 --num_clips=16
