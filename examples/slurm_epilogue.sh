#!/bin/sh
# Slurm's EpilogSlurmctld, or the end of a job script: the verdict on a job's newest run beside its output.
# LOGS overrides logs/ in the folder of the job; the exit code stays 0: another one drains the node.
job=${SLURM_JOB_ID:?runs inside Slurm}
folder=$(scontrol show job "$job" | sed -n 's/^ *WorkDir=//p')
state=$(sacct -X -n -P -j "$job" -o State | head -n 1)
report=$folder/moe-$job.txt
rm -f "$report"
set -C  # a new file: never through a link that the owner of the job left there
{
  moe-microscope check "${LOGS:-$folder/logs}" 2>&1
  code=$?
  echo "job $job: ${state:-unknown}, moe-microscope check: $code"
} > "$report"
[ "$code" != 2 ] || scontrol update "JobId=$job" "AdminComment=MoE routers critical, see $report"
exit 0
