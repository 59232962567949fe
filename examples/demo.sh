#!/usr/bin/env bash
# Train the tiny preset, collapse its layer L3 on purpose, and watch it: the microscope in front, the
# trainer in the background (in tmux its output is above). Without a terminal: a short run, a snapshot.
#
# Every exit runs `finish`, which stops the trainer with SIGTERM: bash starts background processes
# with SIGINT ignored.
set -uo pipefail
cd "$(dirname "$0")/.."

collapse=(--force-collapse 3@60)   # the routers are even by step 50; the verdict comes by step 112
stamp="demo-$(date +%Y-%m-%d-%H%M%S)"
run=$stamp
mkdir -p logs
for ((n = 2; ; n++)); do           # the folder claims the name: a second demo takes another one
  mkdir "logs/$run" 2>/dev/null && break
  [ -d "logs/$run" ] || { echo "demo: cannot write logs/ in $PWD" >&2; exit 1; }
  run="$stamp-$n"
done
log="logs/$run/metrics.jsonl"
console="logs/$run.console.txt"
train=(.venv/bin/python train.py --preset tiny --run "$run" "${collapse[@]}")
watch=(.venv/bin/moe-microscope "logs/$run")
trainer='' session='' modes='' trainer_code=0 stopped=no

say() { echo "$*" >&2; }

trainer_runs() { [ -n "$trainer" ] && kill -0 "$trainer" 2>/dev/null; }

await_trainer() {
  while trainer_runs; do wait "$trainer"; done   # a signal ends `wait` early
  wait "$trainer"
  trainer_code=$?
}

stop_trainer() {
  stopped=yes
  # Checkpoints are replaced by one rename: a killed trainer leaves the previous one.
  trap 'trainer_runs && kill -KILL "$trainer"' INT
  kill -TERM "$trainer"
  [ -e "$log" ] && say "stopping the trainer and writing a checkpoint (press Ctrl-C to skip it)"
}

finish() {
  local code=$?
  trap '' HUP INT TERM PIPE
  trap - EXIT
  trainer=${!:-}                       # a signal may come before it has a name
  [ "$code" -gt 128 ] && stopped=yes   # a terminal that closes tells the trainer too
  [ -n "$session" ] && tmux kill-session -t "=$session" 2>/dev/null
  [ -n "$modes" ] && stty "$modes" 2>/dev/null
  trainer_runs && stop_trainer
  [ -n "$trainer" ] && await_trainer
  trap '' INT
  if [ "$stopped" = no ] && [ "$trainer_code" != 0 ]; then
    code=$trainer_code
    say "demo: the trainer failed with exit code $code"
    [ -s "$console" ] && tail -n 15 "$console" >&2
  fi
  rmdir "logs/$run" 2>/dev/null        # claimed for a run that never began
  if [ -e "$log" ]; then
    say "watch it again:  .venv/bin/moe-microscope logs/$run"
    if [ -e "checkpoints/$run/latest" ]; then
      [ "$stopped" = yes ] && say "train on:        .venv/bin/python train.py --run $run --resume auto"
      say "generate text:   .venv/bin/python -m moe_model.generate checkpoints/$run"
      say "probe it (20 s): .venv/bin/moe-microscope probe checkpoints/$run README.md train.py -o logs/$run-probe"
      say "see tokens (7):  .venv/bin/moe-microscope logs/$run-probe"
    fi
  elif [ "$stopped" = yes ]; then
    rm -f "$console"
    say "demo: stopped before the first step; nothing was written"
  fi
  exit "$code"
}

trap finish EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

if ! { [ -t 0 ] && [ -t 1 ] && [ -t 2 ]; }; then
  say "no terminal: training 150 steps (about a minute on two cores), then printing a snapshot"
  "${train[@]}" --steps 150 --eval-every 150 & trainer=$!
  await_trainer
  [ "$trainer_code" = 0 ] && .venv/bin/moe-microscope snapshot "logs/$run"
  exit
fi

modes=$(stty -g)
say "starting the trainer; its output goes to $console"
"${train[@]}" >"$console" 2>&1 </dev/null & trainer=$!
say "at step 60 the router of L3 is collapsed on purpose; the verdict appears by step 112"
while [ ! -s "$log" ]; do
  trainer_runs || exit 0   # `finish` reports why
  sleep 0.2
done

if command -v tmux >/dev/null && [ -z "${TMUX:-}" ]; then
  session=$run
  # Each command is a list of words, so that it does not matter which shell the user has.
  tmux new-session -s "$session" bash -c \
    'trap : INT; "$@" || [ $? = 130 ] || read -r -p "the microscope failed; Enter closes this" _
    tmux kill-session -t "=$0"' \
    "$session" "${watch[@]}" \; split-window -d -v -b -l 25% tail -n +1 -f "$console" && exit 0
  [ -t 0 ] || exit 129   # the terminal was closed
  say "tmux cannot open a session here; showing only the microscope"
fi
"${watch[@]}"
