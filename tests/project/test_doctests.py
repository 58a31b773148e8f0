"""Every example in a docstring runs and prints what it says."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import cossim_fast

# Tested in tests/adapters, beside the libraries that they import.
SUBCLASSES = {
    f"cossim_fast.integrations.{name}"
    for name in (
        "langchain",
        "langgraph",
        "lightly",
        "llama_index",
        "pytorch_metric_learning",
        "sentence_transformers_losses",
    )
}
MODULES = ["cossim_fast"] + [
    found.name
    for found in pkgutil.walk_packages(cossim_fast.__path__, "cossim_fast.")
    if not found.name.startswith("cossim_fast.kernels.")  # need Triton, and a device
    and found.name not in SUBCLASSES
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0


@pytest.mark.parametrize(
    "name", [n for n in cossim_fast.__all__ if callable(getattr(cossim_fast, n))]
)
def test_each_public_function_has_one(name):
    public = getattr(cossim_fast, name)
    if isinstance(public, type) and issubclass(public, tuple):
        return  # a record, shown in the example of the function that returns it
    assert any(test.examples for test in doctest.DocTestFinder().find(public))


def test_the_page_on_exact_search():
    page = Path(__file__).parents[2] / "docs" / "exact-search.md"
    text = page.read_text(encoding="utf-8")
    code = "".join(re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE))
    test = doctest.DocTestParser().get_doctest(code, {}, page.name, str(page), 0)
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0
