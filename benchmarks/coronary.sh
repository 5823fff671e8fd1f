#!/usr/bin/env bash
# Reproduces the figures of docs/results.md on straightened coronary phantoms, from drawing them to the judge's tables.
#
#   benchmarks/coronary.sh OUT [SIZE] [COUNT] [EPOCHS] [JUDGE_SEED]
#
# SIZE is along,across in pixels, 128,32 by default. EPOCHS is `full`, the epochs of the configs (DSCM: 30), or `demo`,
# those of the demo, but 80 for the judge, too. JUDGE_SEED is 1000 by default, as in the demo. The project's environment
# must be active. One segmentor and one judge are trained; then, for each way of dividing the vessel into variables, a
# regressor, a DSCM, Reg-CFT and Seg-CFT, and an evaluation is run:
#
#   thirds   proximal, mid and distal: nine variables (Pos-Seg-CFT)
#   whole    three variables (Seg-CFT)
#   graph    thirds, and a graph proximal -> mid -> distal, plaque -> lumen
#   halves, fifths, shifted    other regions
#
# The models of thirds and graph are also judged where lumens follow plaques (graph/evaluation_descendants).
#
# Everything resumes where it was interrupted.
set -euo pipefail
out=$1 size=${2:-128,32} count=${3:-320} epochs=${4:-full} judge_seed=${5:-1000}
case $epochs in
full) guides="" dscm="--max_epochs 30" cft="" ;;
demo) guides="--max_epochs 80" dscm="--max_epochs 20" cft="--max_epochs 45" ;;
*) echo "EPOCHS is full or demo, not $epochs" >&2 && exit 2 ;;
esac
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mkdir -p "$out" && out=$(cd "$out" && pwd)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export MLFLOW_TRACKING_URI=${MLFLOW_TRACKING_URI:-sqlite:///$out/mlflow.db}

# stage BUNDLE CONFIG DATA OUTPUT [ARGUMENTS]: run one stage, unless it is complete
stage() {
    local bundle=$root/bundles/$1 config=$2 data=$3 target=$out/$4
    shift 4
    [ -f "$target/complete" ] && return
    local configs="'$bundle/configs/$config.json'" overlay=$bundle/configs/${config/train/coronary}.json
    [ -f "$overlay" ] && configs+=",'$overlay'"
    python -m monai.bundle run --config_file "[$configs]" --bundle_root "$bundle" \
        --datalist "$out/data/$data/datalist.json" --output_dir "$target" --resume True "$@"
    touch "$target/complete"
}

# data NAME [ARGUMENTS]: prepare the same vessels with a choice of variables
data() {
    local target=$out/data/$1
    shift
    [ -f "$target/datalist.json" ] && return
    python -m data_prep phantom --kind coronary --count "$count" --size "$size" \
        --name "coronary phantoms" --out "$target" "$@"
}

# evaluate DATA OUTPUT METHODS: judge any number of models
evaluate() {
    python -m monai.bundle run --config_file "$root/bundles/segmentor_evaluation/configs/evaluate.json" \
        --bundle_root "$root/bundles/segmentor_evaluation" --datalist "$out/data/$1/datalist.json" \
        --judge "$out/judge/model.pt" --output_dir "$out/$2" --resume True --interventions_per_case 1 --methods "$3"
}

# compare NAME DATA [ARGUMENTS of the DSCM]: train and evaluate the three methods on one choice of variables
compare() {
    local name=$1 data=$2
    shift 2
    stage seg_cft_finetuning train_regressor "$data" "$data/regressor" $guides
    stage dscm_pretraining train "$data" "$name/dscm" $dscm "$@"
    for guide in segmentor "$data/regressor"; do
        stage seg_cft_finetuning train "$data" "$name/cft_$(basename "$guide")" --dscm "$out/$name/dscm/model.pt" \
            --guide "$out/$guide/model.pt" --deformation True $cft
    done
    evaluate "$data" "$name/evaluation" "{
        \"No-CFT\": \"$out/$name/dscm/model.pt\",
        \"Reg-CFT\": \"$out/$name/cft_regressor/model.pt\",
        \"Seg-CFT\": \"$out/$name/cft_segmentor/model.pt\"}"
    python -m segcft_ext.report --evaluation_dir "$out/$name/evaluation" --output "$out/$name/report.html" \
        --data_dir "$out/data/$data"
}

data thirds
data descendants --descendants
data whole --regions none
data halves --regions proximal,distal
data fifths --regions first,second,third,fourth,fifth
data shifted --boundaries 0,0.2,0.55,1

stage plaque_lumen_segmentor train thirds segmentor $guides
stage segmentor_evaluation train thirds judge $guides --seed "$judge_seed"

compare thirds thirds
compare whole whole
compare graph thirds --parents '{
    "calcified_plaque_area_mid": ["calcified_plaque_area_proximal"],
    "calcified_plaque_area_distal": ["calcified_plaque_area_mid"],
    "noncalcified_plaque_area_mid": ["noncalcified_plaque_area_proximal"],
    "noncalcified_plaque_area_distal": ["noncalcified_plaque_area_mid"],
    "lumen_area_proximal": ["calcified_plaque_area_proximal", "noncalcified_plaque_area_proximal"],
    "lumen_area_mid": ["lumen_area_proximal", "calcified_plaque_area_mid", "noncalcified_plaque_area_mid"],
    "lumen_area_distal": ["lumen_area_mid", "calcified_plaque_area_distal", "noncalcified_plaque_area_distal"]}'
evaluate descendants graph/evaluation_descendants "{
    \"Reg-CFT, independent\": \"$out/thirds/cft_regressor/model.pt\",
    \"Seg-CFT, independent\": \"$out/thirds/cft_segmentor/model.pt\",
    \"Reg-CFT, graph\": \"$out/graph/cft_regressor/model.pt\",
    \"Seg-CFT, graph\": \"$out/graph/cft_segmentor/model.pt\"}"
for regions in halves fifths shifted; do
    compare $regions $regions
done
