#!/usr/bin/env bash
# Train with Slurm: bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [arguments of tools/train.py]
# GPUS, GPUS_PER_NODE, CPUS_PER_TASK and SRUN_ARGS may be set.
set -euo pipefail
source "$(dirname "$0")/_launch.sh"
say_usage 'PARTITION JOB_NAME CONFIG WORK_DIR [arguments of tools/train.py]' 4 $#
with_slurm "$1" "$2" train.py "$3" --work-dir "$4" --launcher slurm "${@:5}"
