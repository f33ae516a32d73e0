#!/usr/bin/env bash
# Test with Slurm: bash tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [arguments of tools/test.py]
# GPUS, GPUS_PER_NODE, CPUS_PER_TASK and SRUN_ARGS may be set.
set -euo pipefail
source "$(dirname "$0")/_launch.sh"
say_usage 'PARTITION JOB_NAME CONFIG CHECKPOINT [arguments of tools/test.py]' 4 $#
with_slurm "$1" "$2" test.py "$3" "$4" --launcher slurm "${@:5}"
