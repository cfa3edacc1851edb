#!/usr/bin/env bash
# demo.sh NAME OPTIONS... : what `make demo` and `make demo-bert` run. The Python standard library's
# sources become a corpus, by OPTIONS of tools/preprocess_data.py; the model of examples/NAME/run.yaml grows
# inside one torchrun job of two ranks; its fixed-size twin trains on the same samples; a report follows.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export OMP_NUM_THREADS=1
name=$1 out=runs/$1
shift

if ! compgen -G "data/${name}_text_*.json" > /dev/null; then
  echo "== Corpus: the Python standard library"
  python tools/preprocess_data.py --output-prefix "data/$name" --overwrite \
    --input "$(python -c 'import sysconfig; print(sysconfig.get_paths()["stdlib"])')" \
    --glob '*.py' --exclude site-packages --exclude 'test*' --exclude idle_test \
    --train-tokenizer 4096 --valid-fraction 0.05 "$@"
fi

train() {
  torchrun --standalone --nproc-per-node 2 pretrain_progressive.py \
    --config "examples/$name/run.yaml" "$@"
}
echo "== Progressive run: a small model first, then the whole"
train --run.output_dir "$out/progressive"
echo "== Its twin: the whole model from the start"
train --run.output_dir "$out/fixed" --stages '[]'
echo "== Comparison"
python tools/compare_runs.py "$out/progressive" "$out/fixed" --output "$out/report"
