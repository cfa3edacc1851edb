#!/usr/bin/env bash
# Four models from one run; beside each a run of its size alone, from nothing, of the same FLOPs; what
# both ways cost, and how far the models are from each other.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export OMP_NUM_THREADS=1
here=examples/family out=runs/family members=(small medium large largest)

if [ ! -e data/family_text_document.idx ]; then
  echo "== Corpus: the Python standard library"
  python tools/preprocess_data.py --output-prefix data/family --append-eod \
    --input "$(python -c 'import sysconfig; print(sysconfig.get_paths()["stdlib"])')" \
    --glob '*.py' --exclude site-packages --exclude 'test*' --exclude idle_test \
    --train-tokenizer 1024 --valid-fraction 0.05
fi
train() { torchrun --standalone --nproc-per-node 1 pretrain_progressive.py --config "$@"; }
echo "== One run, four models"
train $here/run.yaml
for name in "${members[@]}"; do
  echo "== $name alone"
  python tools/twin.py "$out/trunk/releases/$name/config.yaml" --equal flops -o "$out/$name.yaml" \
    --checkpoint.load null
  train "$out/$name.yaml" --run.output_dir "$out/alone/$name" --checkpoint.load auto
done
echo "== What it cost"
python tools/compare_family.py $out/trunk --alone $out/alone --output $out/cost.json
compare() {  # WHERE WHAT FILE: of the models WHERE/<member>/WHAT, into FILE
  local models=("${members[@]/#/$1/}")
  python tools/compare_models.py --data data/family_valid_text_document "${models[@]/%//$2}" --output "$3"
}
echo "== The family on the validation text"
compare $out/trunk/releases huggingface $out/family.json
echo "== The models that were trained alone"
compare $out/alone checkpoints $out/alone.json
