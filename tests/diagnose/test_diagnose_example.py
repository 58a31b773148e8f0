"""The story of the collapsed VGG, shortened, ends as it is told."""

import importlib.util
from pathlib import Path

import pytest

from cossim_fast.diagnose import CollapseWarning


def test_vgg_collapse(tmp_path):
    path = Path(__file__).parents[2] / "examples/vgg_collapse.py"
    spec = importlib.util.spec_from_file_location("vgg_collapse", path)
    story = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(story)
    with pytest.warns(CollapseWarning) as caught:
        outcome = story.run(quick=True, html=tmp_path)
    said = [str(each.message) for each in caught]
    assert any(text.startswith("comparison 0: same_object") for text in said)
    assert any(text.startswith("step 0: point_collapse") for text in said)
    assert outcome.aliasing == "same_object"
    assert outcome.untrained.verdict == "point_collapse"
    assert outcome.attracted.verdict == "point_collapse"
    assert outcome.trained.verdict == "healthy"
    assert outcome.trained.classes.nearest_accuracy > 0.9
    assert outcome.attracted.classes.nearest_accuracy < 0.3
    assert len(list(tmp_path.glob("*.html"))) == 3
