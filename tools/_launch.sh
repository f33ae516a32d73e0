# How dist_*.sh and slurm_*.sh start many processes; they source this.
tools=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH=$tools/..${PYTHONPATH:+:$PYTHONPATH}

# say_usage ARGUMENTS MINIMUM GIVEN: ends the script if it was given fewer arguments than the minimum.
say_usage() {
    [ "$3" -ge "$2" ] || {
        echo "usage: $0 $1" >&2
        exit 2
    }
}

# with_torch PROCESSES TOOL [ARGUMENT...]: on this machine, or on this one of several.
with_torch() {
    local processes=$1 tool=$2
    shift 2
    python -m torch.distributed.run \
        --nnodes="${NNODES:-1}" \
        --node_rank="${NODE_RANK:-0}" \
        --master_addr="${MASTER_ADDR:-127.0.0.1}" \
        --master_port="${PORT:-29500}" \
        --nproc_per_node="$processes" \
        "$tools/$tool" "$@"
}

# with_slurm PARTITION JOB_NAME TOOL [ARGUMENT...]
with_slurm() {
    local partition=$1 job_name=$2 tool=$3
    shift 3
    # SRUN_ARGS is a list of words and is split on purpose.
    # shellcheck disable=SC2086
    srun -p "$partition" \
        --job-name="$job_name" \
        --gres="gpu:${GPUS_PER_NODE:-8}" \
        --ntasks="${GPUS:-8}" \
        --ntasks-per-node="${GPUS_PER_NODE:-8}" \
        --cpus-per-task="${CPUS_PER_TASK:-5}" \
        --kill-on-bad-exit=1 \
        ${SRUN_ARGS:-} \
        python -u "$tools/$tool" "$@"
}
