#!/usr/bin/env bash
# Someone else's model, grown: import a Llama-style Hugging Face model, make it wider and deeper,
# train on with tensor parallelism, export it, generate.
#
#     bash examples/grow_llama/grow.sh             # a toy, made on the spot
#     bash examples/grow_llama/grow.sh DIRECTORY   # a real one: adapt grow.yaml and run.yaml to it
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export OMP_NUM_THREADS=1
here=examples/grow_llama out=runs/grow_llama
convert="python tools/convert_checkpoint.py"
rm -rf "$out"
mkdir -p "$out"

if [ $# -gt 0 ]; then
  ln -s "$(realpath "$1")" "$out/model"
else
  echo "== A model of someone else's"
  python $here/make_model.py "$out/model" --steps "${TOY_STEPS:-200}"
fi
echo "== Import"
$convert import-hf "$out/model" "$out/imported"
$convert verify "$out/model" "$out/imported" --weights-only --forward
echo "== Grow, and cut for two tensor-parallel ranks"
$convert grow "$out/imported" "$out/grown" --grow $here/grow.yaml --tensor-model-parallel-size 2
$convert verify "$out/imported" "$out/grown" --forward
echo "== Train on"
python tools/preprocess_data.py --output-prefix "$out/data" \
  --input "$(python -c 'import sysconfig; print(sysconfig.get_paths()["stdlib"])')"/*.py \
  --tokenizer "$out/model/tokenizer.json" --append-eod --valid-fraction 0.02
torchrun --standalone --nproc-per-node 2 pretrain_progressive.py --config $here/run.yaml \
  --train.train_iters "${TRAIN_ITERS:-60}"
echo "== Export, and generate with transformers"
$convert export-hf "$out/run/checkpoints" "$out/exported"
python $here/generate.py "$out/exported"
