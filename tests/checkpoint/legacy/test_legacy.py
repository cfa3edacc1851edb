"""Legacy checkpoints of megatron-core's own models, read and written."""

from __future__ import annotations

import random
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from megatron_grow.checkpoint.legacy.format import Legacy
from megatron_grow.checkpoint.legacy.reader import LegacyReader
from megatron_grow.checkpoint.reader import Reader
from megatron_grow.checkpoint.root import is_complete
from megatron_grow.checkpoint.writer import Block, Writer
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.convert.checks import check_held
from megatron_grow.convert.synthetic import SyntheticReader
from megatron_grow.inputs.errors import UserError
from megatron_grow.state.boxes import full, split
from megatron_grow.state.kinds import MAIN_PARAM
from tests.checkpoint.legacy.files import loads, save
from tests.checkpoint.stock.models import BATCH, LENGTH, MODELS, PADDED, STEP, layout, painted
from tests.distributed import run_ranks
from tests.toy import TIED

LAYOUTS = {
    "TP1 PP1": layout(),
    "TP2 PP1": layout(tp=2),
    "TP1 PP2": layout(pp=2),
    "TP1 PP2 VPP2": layout(pp=2, vpp=2),
}
CASES = [
    ("gpt2", "TP1 PP1"),
    ("gpt2", "TP1 PP2"),
    ("llama", "TP2 PP1"),
    ("llama", "TP1 PP2 VPP2"),
    ("qwen2", "TP1 PP2"),
    ("qwen3", "TP2 PP1"),
    ("qwen3", "TP1 PP2 VPP2"),
]


def ranks(parallel: ParallelConfig) -> int:
    return parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size


def check(source: Reader) -> None:
    """That a source holds the painted values, all of them, whichever boxes are asked for."""
    for key, tensor in source.tensors.items():
        expected = painted(key, tensor.checkpoint_shape).view(tensor.shape)
        values = source.read(key, MAIN_PARAM, full(tensor.shape))
        assert torch.equal(values, expected), key
        for box in split(full(tensor.shape), 100):
            part = source.read(key, MAIN_PARAM, box)
            assert torch.equal(part, expected[tuple(slice(a, b) for a, b in box)]), (key, box)


def writer(
    directory: Path, source: Reader, parallel: ParallelConfig, made: Legacy | None = None
) -> Writer:
    """Of a source for a layout."""
    record = replace(source.record, parallel=asdict(parallel))
    return (made or Legacy()).writer(directory, source, record)


def copy(source: Reader, writer: Writer, twin: Writer) -> None:
    """Write all of ``source``, in blocks in any order, by two sinks, as two processes would."""
    blocks = [
        Block(key, MAIN_PARAM, box)
        for key, tensor in source.tensors.items()
        for box in split(full(tensor.shape), 150)
    ]
    random.Random(1).shuffle(blocks)
    parts = [blocks[start : start + 20] for start in range(0, len(blocks), 20)]

    def made(part: list[Block]) -> Iterator[tuple[Block, dict[str, torch.Tensor]]]:
        for block in part:
            yield block, {block.key: source.read(block.key, block.kind, block.box)}

    writer.directory.mkdir()
    writer.prepare()
    with ThreadPoolExecutor(3) as pool:
        futures = [
            pool.submit((writer, twin)[number % 2].write, number, made(part))
            for number, part in enumerate(parts)
        ]
        writer.finish([future.result(timeout=60) for future in futures])


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stock")
    for model, name in CASES:
        parallel = LAYOUTS[name]
        run_ranks(ranks(parallel), save, MODELS[model], parallel, root / model / name)
    return root


@pytest.mark.parametrize(("model", "name"), CASES)
def test_reading_finds_what_megatron_core_says_is_there(model: str, name: str, stock: Path) -> None:
    source = LegacyReader(stock / model / name)
    assert is_complete(source.path)
    assert source.layout == name
    assert source.left_behind == ()
    assert source.record.model_config.resolved == MODELS[model].resolved
    assert (source.record.step, source.record.consumed_samples) == (STEP, STEP * BATCH)
    assert source.record.consumed_tokens == STEP * BATCH * LENGTH
    check(source)


@pytest.mark.parametrize(
    ("model", "before", "after"),
    [
        ("gpt2", "TP1 PP1", "TP2 PP1"),
        ("gpt2", "TP1 PP1", "TP1 PP2 VPP2"),
        ("llama", "TP1 PP2 VPP2", "TP1 PP2"),
        ("qwen2", "TP1 PP2", "TP2 PP1"),
        ("qwen3", "TP2 PP1", "TP1 PP2 VPP2"),
    ],
)
def test_megatron_core_takes_what_is_written_and_the_way_back_is_bit_identical(
    model: str, before: str, after: str, stock: Path, tmp_path: Path
) -> None:
    source, there, back = LegacyReader(stock / model / before), tmp_path / "to", tmp_path / "back"
    local = Legacy(fused_norms=False)
    sinks = [writer(there, source, LAYOUTS[after], local) for _ in range(2)]
    copy(source, *sinks)
    for path in there.glob("mp_rank_*/*.pt"):
        assert zipfile.ZipFile(path).testzip() is None
    read_back = sinks[0].reopen()
    for key, tensor in source.tensors.items():
        box = full(tensor.shape)
        values = read_back.read_stored(key, key, box)
        assert torch.equal(values, source.read(key, MAIN_PARAM, box))
    assert all(run_ranks(ranks(LAYOUTS[after]), loads, MODELS[model], LAYOUTS[after], there))
    written = LegacyReader(there)
    assert written.record.model_config == source.record.model_config
    twins = [writer(back, written, LAYOUTS[before], local) for _ in range(2)]
    copy(written, *twins)
    for path in (stock / model / before).glob("mp_rank_*/*.pt"):
        theirs = torch.load(path, weights_only=False)
        ours = torch.load(back / path.relative_to(stock / model / before), weights_only=False)
        for entry in (name for name in theirs if name.startswith("model")):
            assert theirs[entry].keys() == ours[entry].keys()
            for name, value in theirs[entry].items():
                same = value is None and ours[entry][name] is None
                assert same or torch.equal(value, ours[entry][name]), name


@pytest.mark.parametrize("tensor_parallel", [1, 2])
def test_padding_of_the_vocabulary(tensor_parallel: int, tmp_path: Path) -> None:
    """Stock's files have 128 rows for 100 tokens; what is written has zeros there."""
    here, there = layout(tp=2), layout(tp=tensor_parallel)
    run_ranks(2, save, PADDED, here, tmp_path / "stock", 100)
    source = LegacyReader(tmp_path / "stock")
    for key in ("embedding.word_embeddings.weight", "output_layer.weight"):
        values = source.read(key, MAIN_PARAM, full(source.tensors[key].shape))
        assert torch.equal(values, painted(key, (128, 32))[:100])
    sinks = [writer(tmp_path / "ours", source, there) for _ in "ab"]
    copy(source, *sinks)
    found = []
    for path in sorted((tmp_path / "ours").glob("mp_rank_*/*.pt")):
        assert zipfile.ZipFile(path).testzip() is None
        state = torch.load(path, weights_only=False)
        assert state["args"].padded_vocab_size == 128
        found.append(state["model"]["output_layer.weight"])
    rows = torch.cat(found)
    assert len(found) == tensor_parallel and rows.shape == (128, 32)
    assert torch.equal(rows[:100], painted("output_layer.weight", (128, 32))[:100])
    assert not rows[100:].any()
    again = LegacyReader(tmp_path / "ours")
    for key, tensor in source.tensors.items():
        box = full(tensor.shape)
        assert torch.equal(again.read(key, MAIN_PARAM, box), source.read(key, MAIN_PARAM, box))


def test_norms_are_found_under_the_names_of_transformer_engine(stock: Path, tmp_path: Path) -> None:
    source = LegacyReader(stock / "gpt2" / "TP1 PP1")
    sinks = [writer(tmp_path / "te", source, layout()) for _ in "ab"]
    copy(source, *sinks)
    names = torch.load(tmp_path / "te/mp_rank_00/model_optim_rng.pt", weights_only=False)["model"]
    assert "decoder.layers.3.self_attention.linear_qkv.layer_norm_weight" in names
    assert "decoder.layers.3.mlp.linear_fc1.layer_norm_bias" in names
    assert not any("input_layernorm" in name for name in names)
    check(LegacyReader(tmp_path / "te"))


def test_tensors_that_share_one_storage(stock: Path, tmp_path: Path) -> None:
    """As Megatron-LM's distributed optimizer keeps its weights: views of one buffer."""
    state = torch.load(stock / "gpt2/TP1 PP1/mp_rank_00/model_optim_rng.pt", weights_only=False)
    values = {name: value for name, value in state["model"].items() if value is not None}
    buffer = torch.cat([value.flatten() for value in values.values()])
    start = 0
    for name, value in values.items():
        state["model"][name] = buffer[start : start + value.numel()].view(value.shape)
        start += value.numel()
    (tmp_path / "mp_rank_00").mkdir()
    torch.save(state, tmp_path / "mp_rank_00/model_optim_rng.pt")
    check(LegacyReader(tmp_path))


def test_a_layout_that_does_not_divide(stock: Path, tmp_path: Path) -> None:
    source = LegacyReader(stock / "llama" / "TP2 PP1")
    with pytest.raises(UserError, match=r"tensor_model_parallel_size=4 does not divide the 2 .*kv"):
        writer(tmp_path, source, layout(tp=4))
    with pytest.raises(UserError, match="num_layers"):
        writer(tmp_path, source, layout(pp=3))
    assert list(tmp_path.iterdir()) == []


def test_factors_that_megatron_lm_would_leave_out_are_refused() -> None:
    model = replace(TIED, logits_scaling=4.0, softmax_scale=8**-0.5)
    with pytest.raises(UserError, match=r"has model.logits_scaling=4.0, .* logits_scaling: null$"):
        check_held(SyntheticReader(model, optimizer=None), Legacy(), "fp32")
    plain = replace(model, logits_scaling=1.0)  # and scores as they would be anyway
    check_held(SyntheticReader(plain, optimizer=None), Legacy(), "fp32")
