import pytest
from transformers import AutoTokenizer

from longctx import builtin


@pytest.fixture(scope="session")
def builtin_folder():
    """Folder of the built-in model; `make setup` installs its package."""
    return builtin.folder("smollm2-135m")


@pytest.fixture(scope="session")
def builtin_tokenizer(builtin_folder):
    return AutoTokenizer.from_pretrained(builtin_folder)


@pytest.fixture
def builtin_model(builtin_folder):
    return AutoTokenizer.from_pretrained(builtin_folder), builtin_folder
