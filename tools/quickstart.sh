#!/usr/bin/env bash
# From a clone to a trained detector: sets up, makes the sample data, trains, tests and draws.
#
#   bash tools/quickstart.sh [--smoke] [detection|segmentation|trees]
#
# Results go to work_dirs/quickstart (detection: Mask R-CNN with SSViT, the default),
# work_dirs/quickstart_segmentation (UPerNet with SSViT) or work_dirs/quickstart_trees (tree crowns on
# airborne photographs: Faster R-CNN with SSViT, trained by the clock on a folder as users have it).
# What is done is skipped and an interrupted training goes on from its last checkpoint; remove the
# folder to start again. --smoke only shows that everything runs: a few images and iterations, in
# work_dirs/quickstart_smoke*.
set -euo pipefail

usage() {
    echo 'usage: bash tools/quickstart.sh [--smoke] [detection|segmentation|trees]' >&2
    exit 2
}

task=detection
smoke=
for arg in "$@"; do
    case "$arg" in
        --smoke) smoke=_smoke ;;
        detection | segmentation | trees) task=$arg ;;
        *) usage ;;
    esac
done

sample=digit_cards
minutes=12 # of training on the trees: a quarter of an hour with all the rest
data_options=()
cd "$(dirname "${BASH_SOURCE[0]}")/.."
case "$task" in
    detection)
        config=configs/quickstart_maskrcnn_ssvit.py
        work_dir=work_dirs/quickstart$smoke
        short=train_cfg.max_epochs=1
        ;;
    segmentation)
        config=configs/quickstart_upernet_ssvit.py
        work_dir=work_dirs/quickstart${smoke}_segmentation
        short='train_cfg.max_iters=4 train_cfg.val_interval=4'
        ;;
    trees)
        config=configs/quickstart_fasterrcnn_ssvit.py
        work_dir=work_dirs/quickstart${smoke}_trees
        short=train_dataloader.batch_size=2
        sample=trees
        [ -z "$smoke" ] || minutes=1
        data_options=(--data data/trees --minutes "$minutes")
        ;;
esac
trained_config=$config
[ "$task" != trees ] || trained_config=$work_dir/$(basename "$config") # knows the data
options=()
if [ -n "$smoke" ]; then
    # shellcheck disable=SC2206  # split into words
    options=(--cfg-options $short default_hooks.logger.interval=1
        train_dataloader.dataset.indices=32 val_dataloader.dataset.indices=8
        test_dataloader.dataset.indices=8)
fi

step() { printf '\n== %s\n' "$*"; }

step 'set up'
bash tools/setup_env.sh
python=${MMLOCALATTN_VENV:-.venv${MMLOCALATTN_STACK:+-$MMLOCALATTN_STACK}}/bin/python
# Without nvcc the set-up compiles for the CPU only, and a GPU would miss mmcv's operators.
if ! command -v nvcc >/dev/null; then
    export CUDA_VISIBLE_DEVICES=
fi
# Threads that wait sleep instead of spinning: far faster when the cores have other work too.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}

step 'sample data'
if [ -d "data/$sample" ]; then
    echo "data/$sample is there"
else
    "$python" tools/make_sample_data.py "$sample"
fi

step "train $config"
if [ -e "$work_dir/trained" ]; then
    echo "$work_dir is trained"
else
    "$python" tools/train.py "$config" --work-dir "$work_dir" --resume "${data_options[@]}" \
        "${options[@]}"
    touch "$work_dir/trained"
fi

step "test $trained_config"
if [ -e "$work_dir/tested" ]; then
    echo "$work_dir is tested"
else
    rm -rf "$work_dir/test" "$work_dir/pictures"
    "$python" tools/test.py "$trained_config" "$(cat "$work_dir/last_checkpoint")" \
        --work-dir "$work_dir/test" --show-dir "$work_dir/pictures" "${options[@]}"
    touch "$work_dir/tested"
fi

step 'report'
"$python" tools/analysis/quickstart_report.py "$work_dir"
