"""The tables of docs/adapters.md: every adapter is in them, and has what they say that it has."""

import importlib
import pkgutil
import re
from pathlib import Path

import pytest

from cossim_fast import integrations

PAGE = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text(encoding="utf-8")
MODULES = [
    found.name
    for found in pkgutil.iter_modules(integrations.__path__)
    if not found.name.startswith("_")
]
# The name that a row of the second table begins with, and classes whose attributes it lists.
ROWS = {
    "sentence_transformers": (["sentence-transformers"], []),
    "sklearn": (["scikit-learn, functions", "scikit-learn, `CosineNeighbors`"], []),
    "scipy": (["scipy"], []),
    "torchmetrics": (["torchmetrics"], []),
    "faiss": (["FAISS"], ["IndexFlatCosine"]),
    "langchain": (["LangChain"], ["InMemoryVectorStore"]),
    "langgraph": (["LangGraph"], ["InMemoryStore"]),
    "llama_index": (["llama-index"], ["SimpleVectorStore"]),
    "mteb": (["MTEB"], ["CosineSearchIndex"]),
    "datasets": (["datasets"], ["DatasetIndex"]),
    "open_clip": (["open_clip, losses"], []),
    "sentence_transformers_losses": (["sentence-transformers, losses"], []),
    "pytorch_metric_learning": (["pytorch-metric-learning, losses"], []),
    "lightly": (["lightly, loss"], []),
}


def test_every_adapter_is_in_both_tables():
    assert set(ROWS) == set(MODULES)
    for module in MODULES:
        assert f"`from cossim_fast.integrations.{module} import" in PAGE, module
        for row in ROWS[module][0]:
            assert len(re.findall(rf"^\| {re.escape(row)} \|", PAGE, re.MULTILINE)) == 1, row


@pytest.mark.parametrize(
    "module", ["sentence_transformers", "sklearn", "scipy", "torchmetrics", "faiss", "datasets"]
)
def test_what_an_adapter_has_is_there(module):
    try:
        adapter = importlib.import_module(f"cossim_fast.integrations.{module}")
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is not installed")
    rows, classes = ROWS[module]
    places = [adapter, *(getattr(adapter, name) for name in classes)]
    names = []
    for row in rows:
        (has,) = re.findall(rf"^\| {re.escape(row)} \| ([^|]*) \|", PAGE, re.MULTILINE)
        # Arguments and classes of the libraries stand beside them.
        names += [n for n in re.findall(r"`([a-z]\w+)`", has) if n not in ARGUMENTS]
    assert names
    for name in names:
        assert any(hasattr(place, name) or _is_made(place, name) for place in places), name


ARGUMENTS = {"score_function", "n_jobs", "leaf_size", "transform"}


def _is_made(place, name):
    """Whether a class sets an attribute as it is made."""
    return isinstance(place, type) and hasattr(place(4), name)
