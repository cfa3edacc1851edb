"""What goes with a model besides its weights: configuration, tokenizer, generation settings.

They have the names of the Hugging Face Hub, in checkpoints of every format.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_grow.checkpoint.layout import SIDE_FILES
from megatron_grow.checkpoint.reader import Reader
from megatron_grow.files.regular import read_regular
from megatron_grow.inputs.errors import UserError
from megatron_grow.model.architectures import architecture_of

if TYPE_CHECKING:
    from megatron_grow.config.model import ModelConfig
    from megatron_grow.data.tokenizers.load import Tokenizer

CONFIG = "config.json"
_SETTINGS = "tokenizer_config.json"

_SIDE_FILES = (
    CONFIG,
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
    "LICENSE*",
)


def side_files(directory: Path) -> dict[str, bytes]:
    """What belongs to a model besides its weights, by name: configuration, tokenizer, licence.

    Raises:
        UserError: one of them cannot be read, or the configuration is none.
    """
    found = {path for pattern in _SIDE_FILES for path in directory.glob(pattern)}
    contents = {path.name: read_regular(path) for path in sorted(found) if path.is_file()}
    if CONFIG in contents:
        parse_object(contents[CONFIG], directory / CONFIG)
    return contents


def parse_object(content: bytes, path: Path) -> dict[str, Any]:
    """The JSON object that ``path`` holds.

    Raises:
        UserError: it holds something else.
    """
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds {type(values).__name__}, not a JSON object")
    return values


def imported_with(source: Reader) -> dict[str, bytes]:
    """The files of the Hugging Face model that ``source`` is, or was imported from, by name."""
    kept = source.path / SIDE_FILES
    return side_files(kept if kept.exists() else source.path)


def of_source(source: Reader) -> dict[str, bytes]:
    """The same; of a checkpoint that a run wrote, those that its tokenizer needs.

    Nothing if that tokenizer is not known, or no longer there.
    """
    if found := imported_with(source):
        return found
    data = source.record.config.get("data", {})
    named = str(data.get("tokenizer") or "")
    path = Path(named)
    if path.is_file() and path.with_name(CONFIG).exists():  # that of another model
        return side_files(path.parent)
    from megatron_grow.data.tokenizers.load import load_tokenizer  # slow to import

    try:
        tokenizer = load_tokenizer(named, data.get("vocab_file"), data.get("merge_file"))
    except UserError:
        return {}
    made = _made(tokenizer, source.record.model_config)
    if path.is_file():
        if path.suffix == ".txt":  # of which its tokenizer.json is made
            made["vocab.txt"] = path.read_bytes()
        else:
            made["tokenizer.json"] = path.read_bytes()
        if path.with_name(_SETTINGS).is_file():
            made[_SETTINGS] = path.with_name(_SETTINGS).read_bytes()
    return made


def _made(tokenizer: Tokenizer, model: ModelConfig) -> dict[str, bytes]:
    """What ``transformers`` needs for a tokenizer of ours.

    Texts that a model goes on with begin and end with one token.
    """
    from megatron_grow.data.tokenizers.masking import framing_tokens

    architecture, frame = architecture_of(model), framing_tokens(tokenizer)
    ends = ("bos_token", "eos_token") if architecture.generates else ()
    ids = {f"{end}_id": tokenizer.eod for end in ends}
    pads = {"pad_token_id": frame["pad_token"][1]} if "pad_token" in frame else {}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **dict.fromkeys(ends, tokenizer.eod_token),
        **{role: name for role, (name, _) in frame.items()},
        "model_max_length": architecture.longest_sequence(model),
    }
    made = {
        CONFIG: _json(ids | pads),
        "tokenizer.json": tokenizer.to_json().encode(),
        _SETTINGS: _json(settings),
    }
    return made | ({"generation_config.json": _json(ids)} if ids else {})


def _json(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()
