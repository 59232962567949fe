#!/bin/sh
# A step of CI after a training: fails on a critical finding (2) and without a verdict (3), as below
# 100 steps; GitHub shows the summary.
# usage: ci_step.sh LOGS [options of check]
moe-microscope check "$@" --fail-on crit > verdict.txt 2>&1
code=$?
sed 's/^/    /' verdict.txt >> "${GITHUB_STEP_SUMMARY:-/dev/stdout}"
[ "$code" = 3 ] && echo "no verdict: verdict.txt has the reason" >&2
exit "$code"
