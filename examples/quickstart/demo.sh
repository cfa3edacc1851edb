#!/usr/bin/env bash
# What `make demo` runs: the Python standard library's sources become a corpus; a model grows from
# zero layers to full depth inside one torchrun job of two ranks, data-parallel while it is small and
# pipeline-parallel when it has grown; its fixed-size twin trains on the same samples; a report follows.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export OMP_NUM_THREADS=1
out=runs/quickstart

if [ ! -e data/quickstart_text_document.json ]; then
  echo "== Corpus: the Python standard library"
  python tools/preprocess_data.py --output-prefix data/quickstart --overwrite \
    --input "$(python -c 'import sysconfig; print(sysconfig.get_paths()["stdlib"])')" \
    --glob '*.py' --exclude site-packages --exclude 'test*' --exclude idle_test \
    --train-tokenizer 4096 --append-eod --valid-fraction 0.05
fi

train() {
  torchrun --standalone --nproc-per-node 2 pretrain_progressive.py \
    --config examples/quickstart/run.yaml "$@"
}
echo "== Progressive run: zero layers first, then full depth"
train --run.output_dir "$out/progressive"
echo "== Its twin: full depth from the start"
train --run.output_dir "$out/fixed" --stages '[]'
echo "== Comparison"
python tools/compare_runs.py "$out/progressive" "$out/fixed" --output "$out/report"
