#!/bin/sh
# A step of CI: train for a short time, then fail on a critical finding; GitHub shows the summary.
# usage: ci_step.sh LOGS [options of check]
moe-microscope check "$@" --fail-on crit > verdict.txt
code=$?
sed 's/^/    /' verdict.txt >> "${GITHUB_STEP_SUMMARY:-/dev/stdout}"
[ "$code" = 3 ] && echo "no verdict: verdict.txt has the reason" >&2
exit "$code"
