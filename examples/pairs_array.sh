#!/bin/bash
# Teacher pairs by a SLURM job array. Its tasks share one folder and need no knowledge of each other:
#
#   sbatch --array=0-15 examples/pairs_array.sh --model mnist --seeds 100000 --device cuda --out runs/pairs
#
# Any task may be killed, preempted or added later. A task ends with 0 when all pairs are there.
#SBATCH --job-name=gas-pairs
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append

# A little less than --time. The shard at work is given back, and the task queued again.
srun gas pairs "$@" --shared --max-time "${MAX_TIME:-3h50m}"
code=$?
if [ "$code" -eq 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
