"""Fixtures shared by all tests: a tiny Llama with a byte-level tokenizer, made afresh, no network."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "offline")

from pathlib import Path

import hypothesis
import pytest

# No test depends on how busy the machine is.
hypothesis.settings.register_profile("phase8", deadline=None)
hypothesis.settings.load_profile("phase8")


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """256 bytes and two special tokens; adds the beginning-of-text token itself."""
    from tests.tiny_model import byte_tokenizer  # transformers takes seconds to import

    return byte_tokenizer()


@pytest.fixture
def tiny_network():
    """A random Llama: 258 tokens, width 16, 2 layers, tied head."""
    from tests.tiny_model import smallest_model

    return smallest_model()


@pytest.fixture
def tiny_model_dir(tmp_path: Path, tiny_network, tiny_tokenizer) -> Path:
    """The tiny Llama saved as a Hugging Face directory."""
    directory = tmp_path / "tiny"
    tiny_network.save_pretrained(directory)
    tiny_tokenizer.save_pretrained(directory)
    return directory
