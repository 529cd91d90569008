# `make demo`: what the model that ships can do, and a minute of training that stops and resumes. BIN is a Python's bin/.
set -eu
run=runs/demo
rm -rf "$run"
echo "== the model that ships: all seven tasks on held-out clips"
"$BIN/python" evaluate.py --checkpoint=demo --output="$run" --steps=25 --num_clips=16 --told_labels=unconditional --guidance=1.5
train="$BIN/python train.py --config=configs/moving_digits.py --workdir=$run/training --config.total_steps=100
  --config.log_every=10 --config.learning_rate.warmup_steps=20 --config.preview.every=0"
echo "== a minute of training from nothing, stopped half-way ..."
$train --stop_after=50
echo "== ... and resumed"
$train
echo "== open $run/index.html"
