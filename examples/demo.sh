#!/usr/bin/env bash
# Train the tiny preset and watch it: side by side in tmux where tmux is there, else the trainer in
# the background and the microscope in front. Without a terminal: a short run, then a snapshot.
set -euo pipefail
cd "$(dirname "$0")/.."
run="demo-$(date +%Y-%m-%d-%H%M%S)"
train=(.venv/bin/python train.py --preset tiny --run "$run")
watch=(.venv/bin/moe-microscope "logs/$run")

if ! { [ -t 0 ] && [ -t 1 ] && [ -t 2 ]; }; then
  echo "no terminal: training 60 steps, then printing a snapshot" >&2
  "${train[@]}" --steps 60 --eval-every 30
  .venv/bin/moe-microscope snapshot "logs/$run"
  exit 0
fi

farewell() {
  echo "watch it again:  .venv/bin/moe-microscope logs/$run"
  echo "let it write:    .venv/bin/python -m moe_model.generate checkpoints/$run"
}

if command -v tmux >/dev/null && [ -z "${TMUX:-}" ]; then
  # Leaving the microscope stops the trainer as Ctrl-C would, and waits for its checkpoint.
  tmux new-session -s "$run" "${train[*]}; tmux wait-for -S $run; echo 'the run has ended'; read -r _" \; \
    split-window -v -l 75% "while [ ! -d logs/$run ]; do sleep 0.2; done; ${watch[*]}; \
      tmux send-keys -t $run:0.0 C-c; tmux wait-for $run; tmux kill-session -t $run"
  farewell
  exit 0
fi

console="logs/$run.console.txt"
"${train[@]}" >"$console" 2>&1 &
trainer=$!
trap 'kill -INT $trainer 2>/dev/null || true; wait $trainer 2>/dev/null || true; tail -n 3 "$console"; farewell' EXIT
while [ ! -d "logs/$run" ] && kill -0 $trainer 2>/dev/null; do sleep 0.2; done
"${watch[@]}"
