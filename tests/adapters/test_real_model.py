"""The example with a real model: built in one process, asked in another. `make test-model`."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
QUESTIONS = {
    "reduce from solid to liquid by heating": "melt:",
    "plan of the rooms on the lowest floor of a building": "ground plan:",
}


def run(*arguments):
    done = subprocess.run(
        [sys.executable, "-P", EXAMPLES / "real_model.py", *map(str, arguments)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.model
@pytest.mark.timeout(600)
def test_an_index_of_a_real_model_answers_in_another_process(tmp_path):
    path = tmp_path / "glosses.index"
    assert run("build", path).startswith("CosineIndex(4000 rows of 384")
    answers = run("ask", path, *QUESTIONS, "-k", "2").splitlines()
    assert answers[::3] == list(QUESTIONS)
    for first, wanted in zip(answers[1::3], QUESTIONS.values(), strict=True):
        assert first.split(maxsplit=1)[1].startswith(wanted)
        assert float(first.split()[0]) > 0.5


@pytest.mark.model
@pytest.mark.timeout(600)
def test_it_is_the_model_of_the_shipped_embeddings(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    import real_model

    index = real_model.build(tmp_path / "some.index", count=200)
    shipped = np.load(EXAMPLES / "data" / "wordnet_minilm_4k_f16.npy")[:200]
    found = index.search(shipped.astype("f"), 1)
    assert found.indices[:, 0].tolist() == list(range(200))
    assert found.scores.min() > 0.99
