#!/usr/bin/env bash
# Reproduces the figures of docs/results.md on real radiographs, from a folder of images and masks to the judge's
# tables.
#
#   benchmarks/radiographs.sh CXR OUT [SIZE]
#
# CXR holds jsrt/ and wingspan/, each with png/ and mask/{left_lung,right_lung,heart}/, and cases.csv. The project's
# environment must be active. It takes two to three hours on one core at 64 x 64, and resumes where it was interrupted.
set -euo pipefail
cxr=$1 out=$2 size=${3:-64}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mkdir -p "$out" && out=$(cd "$out" && pwd)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export MLFLOW_TRACKING_URI=${MLFLOW_TRACKING_URI:-sqlite:///$out/mlflow.db}

# stage BUNDLE CONFIG OUTPUT [ARGUMENTS]: run one stage, unless it is complete
stage() {
    local bundle=$root/bundles/$1 config=$2 target=$out/$3
    shift 3
    [ -f "$target/complete" ] && return
    local configs="'$bundle/configs/$config.json'" overlay=$bundle/configs/image_size_$size.json
    [ $config = train ] && [ -f "$overlay" ] && configs+=",'$overlay'"
    python -m monai.bundle run --config_file "[$configs]" --bundle_root "$bundle" \
        --datalist "$out/data/datalist.json" --output_dir "$target" --resume True "$@"
    touch "$target/complete"
}

[ -f "$out/data/datalist.json" ] || python -m data_prep folder "$cxr/jsrt" "$cxr/wingspan" --images png --masks mask \
    --table "$cxr/cases.csv" --variables '{"age": "continuous", "sex": ["F", "M"]}' --units '{"age": "years"}' \
    --missing '{"age": 0}' --size "$size" --out "$out/data"

stage lung_heart_segmentor train segmentor
stage segmentor_evaluation train judge
stage seg_cft_finetuning train_regressor regressor
stage dscm_pretraining train dscm

for guide in segmentor regressor; do
    name=$([ $guide = segmentor ] && echo seg || echo reg)
    for seed in 0 1 2; do
        [ $seed = 0 ] || [ $guide = segmentor ] || continue
        stage seg_cft_finetuning train ${name}_head_s$seed --dscm "$out/dscm/model.pt" --guide "$out/$guide/model.pt" \
            --deformation True --seed $seed
    done
    stage seg_cft_finetuning train ${name}_hvae --dscm "$out/dscm/model.pt" --guide "$out/$guide/model.pt"
done

python -m monai.bundle run --config_file "$root/bundles/segmentor_evaluation/configs/evaluate.json" \
    --bundle_root "$root/bundles/segmentor_evaluation" --datalist "$out/data/datalist.json" \
    --judge "$out/judge/model.pt" --output_dir "$out/evaluation" --resume True --methods "{
        \"No-CFT\": \"$out/dscm/model.pt\",
        \"Reg-CFT (HVAE)\": \"$out/reg_hvae/model.pt\", \"Seg-CFT (HVAE)\": \"$out/seg_hvae/model.pt\",
        \"Reg-CFT (head)\": \"$out/reg_head_s0/model.pt\", \"Seg-CFT (head)\": \"$out/seg_head_s0/model.pt\",
        \"Seg-CFT (head), seed 1\": \"$out/seg_head_s1/model.pt\", \"Seg-CFT (head), seed 2\": \"$out/seg_head_s2/model.pt\"}"
python -m segcft_ext.report --evaluation_dir "$out/evaluation" --output "$out/report.html" \
    --data_dir "$out/data" --tracking_uri "$MLFLOW_TRACKING_URI"
