# `make demo`: the bundled demo model on all tasks, and a short training that stops and resumes. BIN is a Python's bin/.
set -eu
run=runs/demo
rm -rf "$run"
echo "== the bundled demo model, all seven tasks on held-out clips: $run/index.html shows each task when it is done"
"$BIN/python" evaluate.py --flagfile=benchmarks/demo.flags --output="$run"
train="$BIN/python train.py --config=configs/moving_digits.py --workdir=$run/training --config.total_steps=60
  --config.log_every=10 --config.learning_rate.warmup_steps=20 --config.preview.every=0"
echo "== 60 steps of training from scratch, stopped half-way ..."
$train --stop_after=30
echo "== ... and resumed"
$train
echo "== open $run/index.html"
