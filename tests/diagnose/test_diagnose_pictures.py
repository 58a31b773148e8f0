"""Pictures show the numbers of the report, and the HTML file needs nothing beside it."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from cossim_fast import diagnose
from cossim_fast.diagnose import plots
from html_page import Resources


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


REPORT = diagnose.embeddings(randn(120, 10) + 1, np.arange(120) % 3)


def test_histogram_integrates_to_one():
    figure = plots.cosine_histogram(REPORT)
    (stairs,) = figure.axes[0].patches
    values, edges, _ = stairs.get_data()
    assert float((values * np.diff(edges)).sum()) == pytest.approx(1)


def test_spectrum_is_that_of_the_report():
    line = plots.singular_spectrum(REPORT).axes[0].lines[0]
    values = np.array(REPORT.geometry.singular_values)
    np.testing.assert_allclose(line.get_ydata(), values / values[0])


def test_heatmap_is_ordered_by_label():
    shown = plots.cosine_heatmap(REPORT).axes[0].images[0].get_array()
    rows = REPORT.sample[REPORT.sample_labels.argsort(stable=True)]
    np.testing.assert_allclose(shown, (rows @ rows.T).numpy())


def test_pca_keeps_distances_along_its_axes():
    drawn = plots.pca(REPORT).axes[0].collections  # one a class
    points = np.concatenate([one.get_offsets() for one in drawn])
    centred = (REPORT.sample - REPORT.sample.mean(0)).double()
    energy = torch.linalg.svdvals(centred)[:2].square()
    np.testing.assert_allclose((points**2).sum(0), energy.numpy(), rtol=1e-5)


def test_classes_are_named_up_to_ten_and_numbered_beyond():
    few = plots.pca(diagnose.embeddings(randn(60, 8), ["cat", "dog", "owl"] * 20))
    legend = few.axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["cat", "dog", "owl"]
    assert sum(len(drawn.get_offsets()) for drawn in few.axes[0].collections) == 60
    shapes = {drawn.get_paths()[0].vertices.shape for drawn in few.axes[0].collections}
    assert len(shapes) > 1
    many = plots.pca(diagnose.embeddings(randn(60, 8), torch.arange(60) % 20))
    assert many.axes[0].get_legend() is None
    assert "20" in many.axes[1].get_ylabel()


def test_tsne_keeps_clusters_together():
    centres = 5 * randn(3, 20, seed=1)
    report = diagnose.embeddings(centres[torch.arange(90) % 3] + 0.3 * randn(90, 20))
    points = np.asarray(plots.tsne(report).axes[0].collections[0].get_offsets())
    distances = ((points[:, None] - points) ** 2).sum(-1)
    np.fill_diagonal(distances, np.inf)
    assert (distances.argmin(1) % 3 == np.arange(90) % 3).mean() > 0.95


def test_training_curves_hold_the_records():
    monitor = diagnose.CollapseMonitor(every=1)
    for step in range(3):
        monitor.observe(randn(32, 8, seed=step))
    lines = plots.training(monitor.records).axes[0].lines
    seen = {line.get_label(): list(line.get_ydata()) for line in lines}
    assert seen["mean cosine"] == [record["mean_cosine"] for record in monitor.records]


def test_html_is_one_file_that_needs_no_network(tmp_path):
    path = REPORT.to_html(tmp_path / "report.html", title="A <title> & more")
    text = path.read_text(encoding="utf-8")
    page = Resources()
    page.feed(text)
    assert page.links == []
    assert page.images == 5
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert re.search(r"url\(|@import", text) is None
    assert "A &lt;title&gt; &amp; more" in text
    assert REPORT.verdict in text
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]


def test_html_of_a_set_without_directions(tmp_path):
    path = diagnose.embeddings(torch.zeros(5, 3)).to_html(tmp_path / "report.html")
    assert "broken_numbers" in path.read_text(encoding="utf-8")


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        REPORT.to_html(path)
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("report", [randn(2, 3), randn(12, 1), torch.ones(20, 4), randn(300, 2)])
def test_odd_sets_can_be_drawn(report, tmp_path):
    diagnose.embeddings(report).to_html(tmp_path / "report.html")


HIDDEN = """
import sys
for name in ("matplotlib", "sklearn", "typer", "rich", "tqdm", "safetensors", "pyarrow"):
    sys.modules[name] = None
import torch
from cossim_fast import diagnose
assert not {"matplotlib", "sklearn"} & {name for name, m in sys.modules.items() if m is not None}
report = diagnose.embeddings(torch.randn(50, 8))
print(report.verdict)
try:
    report.to_html("never.html")
except ModuleNotFoundError as error:
    print(error)
"""


def test_extras_are_imported_at_first_use_and_named(tmp_path):
    child = subprocess.run(
        [sys.executable, "-c", HIDDEN], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    verdict, message = child.stdout.splitlines()
    assert verdict == "healthy"
    assert message.endswith("install it with: pip install 'cossim_fast[viz]'")
    assert list(tmp_path.iterdir()) == []
