"""A run in the arguments of Megatron-LM, which its checkpoints carry, and back."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict, fields
from typing import Any, Literal

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.sections import OptimizerSection, ScheduleSection, TrainSection
from megatron_grow.inputs.errors import UserError
from megatron_grow.model.architectures import ARCHITECTURES

_SAID_OTHERWISE = {
    "num_query_groups",
    "vocab_size",
    "activation",
    "share_embeddings_and_output_weights",
}
_MODEL = tuple(field.name for field in fields(ModelConfig) if field.name not in _SAID_OTHERWISE)
"""Fields of a model that have the same name and meaning; Megatron-LM has no argument for some."""

_PARALLEL = {
    "tensor_model_parallel_size": "tensor_model_parallel_size",
    "pipeline_model_parallel_size": "pipeline_model_parallel_size",
    "virtual_pipeline_model_parallel_size": "virtual_pipeline_model_parallel_size",
    "account_for_embedding_in_pipeline_split": "account_for_embedding_in_pipeline_split",
    "account_for_loss_in_pipeline_split": "account_for_loss_in_pipeline_split",
    "num_layers_in_first_pipeline_stage": "decoder_first_pipeline_num_layers",
    "num_layers_in_last_pipeline_stage": "decoder_last_pipeline_num_layers",
    "pipeline_model_parallel_layout": "pipeline_model_parallel_layout",
}
"""Fields of a layout, and the arguments that say the same."""

_TRAIN = ("train_iters", "global_batch_size", "micro_batch_size", "seq_length")
_OPTIMIZER = (
    "lr",
    "min_lr",
    "weight_decay",
    "clip_grad",
    "adam_beta1",
    "adam_beta2",
    "adam_eps",
    "sgd_momentum",
)
"""Fields of a run with the same name and meaning."""

_EXPRESSIBLE: dict[str, tuple[Any, ...]] = {
    "activation_func_clamp_value": (),
    "apply_layernorm_1p": (),
    "apply_residual_connection_post_layernorm": (),
    "attention_output_gate": (),
    "experimental_attention_variant": (),
    "fp16": (),
    "glu_linear_offset": (),
    "heterogeneous_layers_config_encoded_json": (),
    "heterogeneous_layers_config_path": (),
    "hybrid_override_pattern": (),
    "is_hybrid_model": (),
    "layernorm_zero_centered_gamma": (),
    "linear_attention_freq": (),
    "mtp_num_layers": (),
    "multi_latent_attention": (),
    "no_rope_freq": (),
    "num_experts": (),
    "openai_gelu": (),
    "qk_l2_norm": (),
    "quick_geglu": (),
    "retro_add_retriever": (),
    "rotary_interleaved": (),
    "spec": (),
    "standalone_embedding_stage": (),
    "use_legacy_models": (),
    "use_mup": (),
    "window_size": (),
    "normalization": ("LayerNorm", "RMSNorm"),
    "position_embedding_type": ("learned_absolute", "rope"),
    "rope_type": ("rope",),
    "softmax_type": ("vanilla",),
}
"""Arguments that change what a model is, and what can be built here besides None, False and 0."""


def model_from_args(args: Namespace, where: str) -> ModelConfig:
    """The shape of the model that Megatron-LM's arguments describe.

    Args:
        args: as a checkpoint holds them.
        where: begins the message of an error.

    Raises:
        UserError: it has what cannot be built here; the message names the argument.
    """
    for name, possible in _EXPRESSIBLE.items():
        value = getattr(args, name, None)
        if value and value not in possible:
            raise UserError(
                f"{where}: {name}={value} of Megatron-LM has no counterpart here; "
                f"known: {', '.join(possible) or 'a model without it'}"
            )
    given = {name: getattr(args, name, None) for name in _MODEL}
    if given["architecture"] not in (None, *ARCHITECTURES.builtin):
        # An import path would run code, and arguments come from anywhere.
        raise UserError(
            f"{where}: its arguments give architecture={given['architecture']}, which is not "
            f"imported; {', '.join(ARCHITECTURES.builtin)} are known"
        )
    for name in ("num_layers", "hidden_size", "num_attention_heads", "max_position_embeddings"):
        if type(given[name]) is not int:
            raise UserError(f"{where}: its arguments give {name}={given[name]}, not a whole number")
    if given["add_bias_linear"]:
        given["add_qkv_bias"] = False  # the same biases, named twice
    grouped = getattr(args, "group_query_attention", False)
    return ModelConfig(
        **{name: value for name, value in given.items() if value is not None}
        | _vocabulary(args, where),
        num_query_groups=args.num_query_groups if grouped else None,
        activation=_activation(args),
        share_embeddings_and_output_weights=not getattr(
            args, "untie_embeddings_and_output_weights", False
        ),
    )


def _activation(args: Namespace) -> Literal["swiglu", "squared_relu", "gelu_tanh", "gelu"]:
    if getattr(args, "swiglu", False):
        return "swiglu"
    if getattr(args, "squared_relu", False):
        return "squared_relu"
    # Fused with a bias, Megatron-LM's GELU is the tanh approximation.
    fused = getattr(args, "bias_gelu_fusion", False) and getattr(args, "add_bias_linear", True)
    return "gelu_tanh" if fused else "gelu"


def _vocabulary(args: Namespace, where: str) -> dict[str, int]:
    """How many tokens there are; where nobody says, rows that pad the tables count as tokens."""
    padded, size = getattr(args, "padded_vocab_size", None), getattr(args, "vocab_size", None)
    if type(padded) is not int:
        raise UserError(f"{where}: its arguments give padded_vocab_size={padded}, not a number")
    if size is None:
        return {"vocab_size": padded}
    # The end of document of a NullTokenizer comes on top.
    null = str(getattr(args, "tokenizer_type", None)).startswith("Null")
    return {"vocab_size": min(size + null, padded)}


def parallel_from_args(args: Namespace) -> ParallelConfig:
    """How Megatron-LM's arguments lay a model out over tensor- and pipeline-parallel ranks."""
    given = {field: getattr(args, name, None) for field, name in _PARALLEL.items()}
    return ParallelConfig(**{field: value for field, value in given.items() if value is not None})


def run_from_args(args: Namespace) -> dict[str, Any]:
    """The sections of a run file that say the same as Megatron-LM's arguments.

    What has no field there is under ``megatron_args``, as far as text can hold it.
    """

    def given(names: tuple[str, ...]) -> dict[str, Any]:
        values = {name: getattr(args, name, None) for name in names}
        return {name: value for name, value in values.items() if value is not None}

    train = TrainSection(
        **given(_TRAIN), precision="bf16" if getattr(args, "bf16", False) else "fp32"
    )
    iterations = train.train_iters

    def share(name: str) -> float:
        fraction = getattr(args, f"{name}_fraction", None)
        return fraction or (getattr(args, f"{name}_iters", None) or 0) / iterations

    schedule = ScheduleSection(
        lr_warmup_fraction=share("lr_warmup"),
        lr_wsd_decay_fraction=share("lr_wsd_decay"),
        **given(("lr_decay_style", "lr_wsd_decay_style")),
    )
    optimizer = OptimizerSection(**given((*_OPTIMIZER, "optimizer")))
    return {
        "parallel": asdict(parallel_from_args(args)),
        "train": asdict(train),
        "optimizer": asdict(optimizer),
        "schedule": asdict(schedule),
        "megatron_args": {name: value for name, value in vars(args).items() if _is_plain(value)},
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def model_to_args(model: ModelConfig, tensor_parallel: int) -> dict[str, Any]:
    """Megatron-LM's arguments for a model on ``tensor_parallel`` ranks."""
    grouped = model.query_groups != model.num_attention_heads
    return {
        **{name: getattr(model, name) for name in _MODEL},
        "add_qkv_bias": model.add_bias_linear or model.add_qkv_bias,
        "kv_channels": model.head_dim,
        "ffn_hidden_size": model.ffn_size,
        "group_query_attention": grouped,
        "num_query_groups": model.query_groups if grouped else 1,
        "swiglu": model.activation == "swiglu",
        "squared_relu": model.activation == "squared_relu",
        "bias_gelu_fusion": model.activation == "gelu_tanh",
        "untie_embeddings_and_output_weights": not model.share_embeddings_and_output_weights,
        "vocab_size": model.vocab_size,
        "padded_vocab_size": model.padded_vocab_size(tensor_parallel),
        "add_position_embedding": True,
    }


def parallel_to_args(parallel: ParallelConfig) -> dict[str, Any]:
    """Megatron-LM's arguments for a layout."""
    return {name: getattr(parallel, field) for field, name in _PARALLEL.items()}


def run_to_args(config: dict[str, Any]) -> dict[str, Any]:
    """Megatron-LM's arguments for batches, optimizer and schedule.

    Args:
        config: a run file, resolved; sections that it lacks are left out.
    """
    train, optimizer = config.get("train", {}), config.get("optimizer", {})
    args = {**config.get("megatron_args", {})}
    args |= {name: train[name] for name in _TRAIN if name in train}
    args |= {name: optimizer[name] for name in (*_OPTIMIZER, "optimizer") if name in optimizer}
    if "precision" in train:
        args |= {"bf16": train["precision"] == "bf16", "fp16": False}
    if schedule := config.get("schedule"):
        iterations = schedule.get("lr_decay_iters") or train["train_iters"]
        args |= {
            "lr_decay_style": schedule["lr_decay_style"],
            "lr_wsd_decay_style": schedule["lr_wsd_decay_style"],
            "lr_warmup_fraction": None,
            "lr_warmup_iters": round(schedule["lr_warmup_fraction"] * iterations),
            "lr_wsd_decay_iters": round(schedule["lr_wsd_decay_fraction"] * iterations),
        }
        if schedule.get("lr_decay_iters"):
            args["lr_decay_iters"] = iterations
    return args
