#!/usr/bin/env bash
# demo.sh NAME "TWINS" OPTIONS... : what `make demo` and `make demo-bert` run. The Python standard library's
# sources become a corpus, by OPTIONS of tools/preprocess_data.py; the model of examples/NAME/run.yaml grows
# inside one torchrun job of two ranks; fixed-size TWINS of equal steps, equal flops or both train beside it;
# a report follows.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export OMP_NUM_THREADS=1
name=$1 twins=$2 out=runs/$1
shift 2

if ! compgen -G "data/${name}_text_*.json" > /dev/null; then
  echo "== Corpus: the Python standard library"
  python tools/preprocess_data.py --output-prefix "data/$name" --overwrite \
    --input "$(python -c 'import sysconfig; print(sysconfig.get_paths()["stdlib"])')" \
    --glob '*.py' --exclude site-packages --exclude 'test*' --exclude idle_test \
    --valid-fraction 0.05 "$@"
fi

train() {
  torchrun --standalone --nproc-per-node 2 pretrain_progressive.py "$@"
}
echo "== Progressive run: a small model first, then the whole"
train --config "examples/$name/run.yaml" --run.output_dir "$out/progressive"
runs=("$out/progressive")
for equal in $twins; do
  echo "== Its twin: the whole model from the start, for equal $equal"
  python tools/twin.py "examples/$name/run.yaml" --equal "$equal" -o "$out/$equal.yaml"
  train --config "$out/$equal.yaml" --run.output_dir "$out/$equal"
  runs+=("$out/$equal")
done
echo "== Comparison"
python tools/compare_runs.py "${runs[@]}" --output "$out/report"
