"""The measures of a set against brute force in float64, and the bounds of memory."""

import json
import math
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cossim_fast import diagnose
from cossim_fast.diagnose import rows as rows_module
from cossim_fast.diagnose.geometry import geometry_of, participation_ratio, rankme


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def brute_force(x):
    u = F.normalize(x.double(), dim=1)
    cosines = (u @ u.T)[~torch.eye(len(u), dtype=torch.bool)]
    values = torch.linalg.svdvals(u - u.mean(0))[: min(len(u) - 1, u.shape[1])]
    return u, cosines, values


@pytest.mark.parametrize("shape", [(300, 20), (20, 300), (64, 64), (2, 5), (50, 1)])
@pytest.mark.parametrize("offset", [0.0, 3.0, 300.0])
def test_geometry_matches_brute_force(shape, offset, monkeypatch):
    monkeypatch.setattr(rows_module, "_BLOCK", 256)
    x = randn(*shape) + offset
    _, cosines, values = brute_force(x)
    g = diagnose.embeddings(x).geometry
    assert g.mean_cosine == pytest.approx(float(cosines.mean()), abs=1e-12)
    assert g.distance == pytest.approx(float((1 - cosines).mean()), rel=1e-6, abs=1e-15)
    torch.testing.assert_close(
        torch.tensor(g.singular_values, dtype=torch.float64), values, rtol=1e-6, atol=1e-7
    )
    if values.max() > 1e-6:
        p = values / values.sum()
        assert g.rankme == pytest.approx(
            math.exp(-float(torch.special.xlogy(p, p).sum())), rel=1e-5
        )
        energy = values.square()
        ratio = float(energy.sum() ** 2 / energy.square().sum())
        assert g.participation_ratio == pytest.approx(ratio, rel=1e-5)


def test_streamed_and_held_geometry_agree():
    x = randn(500, 24) + 1
    streamed = diagnose.embeddings(x).geometry
    held = geometry_of(F.normalize(x.double(), dim=1))
    assert streamed.rankme == pytest.approx(held.rankme, rel=1e-10)
    assert streamed.distance == pytest.approx(held.distance, rel=1e-10)


def test_effective_ranks_of_known_spectra():
    assert rankme(torch.tensor([1.0, 1.0, 0.0])) == pytest.approx(2)
    assert participation_ratio(torch.tensor([2.0, 1.0])) == pytest.approx(25 / 17)
    assert rankme(torch.zeros(3)) == participation_ratio(torch.zeros(3)) == 0


def test_pairs_are_counted_exactly_once():
    x = randn(700, 16) + 0.3
    _, cosines, _ = brute_force(x)
    pairs = diagnose.embeddings(x).pairs
    counts, _ = np.histogram(cosines.numpy(), bins=len(pairs.counts), range=(-1, 1))
    assert sum(pairs.counts) == 700 * 699 // 2
    # A float32 cosine may fall on the other side of an edge.
    assert np.abs(np.array(pairs.counts) - counts / 2).max() <= 3
    assert pairs.error == 0
    assert pairs.lowest == pytest.approx(float(cosines.min()), abs=1e-6)
    expected = math.log(float((4 * cosines - 4).exp().mean()))
    assert pairs.uniformity == pytest.approx(expected, rel=1e-5)
    assert pairs.quantile(0.5) == pytest.approx(float(cosines.median()), abs=0.005)


def test_a_sample_keeps_its_error():
    x = randn(3000, 8) + 0.5
    whole, part = diagnose.embeddings(x).pairs, diagnose.embeddings(x, sample=600).pairs
    assert whole.error == 0
    assert part.error == pytest.approx(math.sqrt(math.log(40) / 600))
    shares = [np.cumsum(p.counts) / sum(p.counts) for p in (whole, part)]
    assert np.abs(shares[0] - shares[1]).max() <= part.error


def test_near_duplicates_are_found_beyond_the_sample():
    once = randn(1500, 32)
    x = torch.cat([once, once + 1e-3 * randn(1500, 32, seed=1)])
    report = diagnose.embeddings(x, sample=200)
    assert report.verdict == "duplicated"
    assert report.neighbours.near_share > 0.95
    assert report.numbers.rows_with_twin == 0


def test_duplicates_are_counted_by_row():
    x = randn(100, 8)
    x = torch.cat([x, x[:10], x[:10], -0.0 * x[:1], torch.zeros(1, 8)])
    numbers = diagnose.embeddings(x).numbers
    assert numbers.distinct_rows == 101
    assert numbers.rows_with_twin == 32


def test_near_groups():
    x = torch.cat(
        [randn(50, 16)[:1].repeat(5, 1), randn(50, 16)[1:2].repeat(3, 1), randn(50, 16)[2:]]
    )
    near = diagnose.embeddings(x + 1e-4 * randn(56, 16, seed=2)).neighbours
    assert near.near_groups == 2
    assert near.near_share == pytest.approx(8 / 56)


def test_states_of_numbers_are_counted():
    x = randn(40, 6).half()
    x[0, 0], x[1, 1], x[2] = float("inf"), float("nan"), 0
    x[3, 2], x[4, 3] = 65504, 1e-7
    x[:, 5] = 0
    x[:, 4] = 2
    x[2, 4] = 2
    numbers = diagnose.embeddings(x).numbers
    assert (numbers.non_finite_rows, numbers.zero_rows) == (2, 0)
    assert (numbers.saturated, numbers.subnormal) == (1, 1)
    assert (numbers.dead_features, numbers.constant_features) == (1, 2)
    assert numbers.zeros == 40 + 4


def test_class_measures_match_brute_force():
    x = randn(300, 12) + 2 * randn(5, 12, seed=1)[torch.arange(300) % 5]
    labels = torch.arange(300) % 5
    u, _, _ = brute_force(x)
    cosines = u @ u.T
    same = labels[:, None] == labels
    itself = torch.eye(300, dtype=torch.bool)
    report = diagnose.embeddings(x, labels)
    classes = report.classes
    assert classes.within == pytest.approx(float(cosines[same & ~itself].mean()), abs=1e-12)
    assert classes.between == pytest.approx(float(cosines[~same].mean()), abs=1e-12)
    distances = torch.cdist(u, u).square()[same & ~itself]
    assert classes.alignment == pytest.approx(float(distances.mean()), abs=1e-10)
    nearest = cosines.masked_fill(itself, -2).argmax(1)
    assert classes.nearest_accuracy == pytest.approx(
        float((labels[nearest] == labels).double().mean()), abs=1 / 300
    )
    assert classes.chance_accuracy == pytest.approx(0.2)
    named = diagnose.embeddings(x, np.array(list("abcde"))[labels.numpy()])
    assert named.classes == classes


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.double(),
        lambda x: x.numpy(),
        lambda x: x.T.contiguous().T,
        lambda x: x * 1e30,
        torch.nn.Parameter,
        lambda x: x.tolist(),
    ],
)
def test_containers_do_not_matter(change):
    x = randn(200, 16)
    expected = diagnose.embeddings(x)
    seen = diagnose.embeddings(change(x))
    assert seen.verdict == expected.verdict == "healthy"
    assert seen.geometry.rankme == pytest.approx(expected.geometry.rankme, rel=1e-5)


@pytest.mark.parametrize(
    ("x", "labels", "error", "words"),
    [
        (randn(4), None, ValueError, r"shape \(n, d\), got \(4,\)"),
        (randn(2, 3, 4), None, ValueError, r"flatten\(0, -2\)"),
        (randn(1, 4), None, ValueError, r"n >= 2"),
        (torch.empty(0, 4), None, ValueError, r"n >= 2"),
        (torch.empty(4, 0), None, ValueError, r"d >= 1"),
        (torch.ones(4, 2, dtype=torch.complex64), None, TypeError, "real numbers"),
        (np.array([["a"], ["b"]]), None, TypeError, "array of numbers"),
        (randn(4, 2), [0, 1], ValueError, r"labels of shape \(4,\), got \(2,\)"),
    ],
)
def test_errors_say_what_was_expected(x, labels, error, words):
    with pytest.raises(error, match=words):
        diagnose.embeddings(x, labels)


@pytest.mark.parametrize("sample", [0, 1, 2.5])
def test_sample_must_be_a_count(sample):
    with pytest.raises((ValueError, TypeError), match="expected sample"):
        diagnose.embeddings(randn(4, 2), sample=sample)


def test_report_serves_people_logs_and_notebooks():
    report = diagnose.embeddings(randn(100, 8), np.arange(100) % 3)
    text = str(report)
    assert text.startswith("embeddings: healthy\n")
    assert "How sure: " in text
    logged = json.loads(json.dumps(report.to_dict()))
    assert logged["verdict"] == "healthy"
    assert logged["geometry"]["mean_cosine"] == report.mean_cosine
    assert "<code>healthy</code>" in report._repr_html_()


def test_crowd_is_counted():
    x = randn(200, 64)
    x[:130] = x[0] + 1e-3 * randn(130, 64, seed=1)
    assert diagnose.embeddings(x).neighbours.crowd == 130 / 200


def test_neighbours_replicate_where_features_share_a_cause_alone():
    latent = randn(200, 4) @ randn(4, 64, seed=1) + randn(200, 64, seed=2)
    assert diagnose.embeddings(latent).neighbours.replication > 4
    heavy_tailed = randn(200, 64) / randn(200, 64, seed=1)
    assert abs(diagnose.embeddings(heavy_tailed).neighbours.replication) < 4


def test_reports_fit_a_terminal():
    for report in (diagnose.embeddings(randn(40, 8) + 3), diagnose.pair(randn(4, 8), randn(4, 8))):
        assert max(map(len, str(report).splitlines())) < 80


def test_few_rows_are_never_sure():
    assert diagnose.embeddings(randn(6, 64)).confidence == "low"
    assert diagnose.embeddings(torch.zeros(6, 64)).confidence == "certain"


def test_environment_does_not_change_the_answer():
    x = randn(300, 32)
    expected = diagnose.embeddings(x).to_dict()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        inside = diagnose.embeddings(x).to_dict()
    assert inside == expected


CHILD = """
import resource, sys
import numpy as np
from cossim_fast import diagnose

def own_memory():
    # Private memory in bytes: pages of the map are the kernel's to take back.
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmData"))
    return 1024 * int(line.split()[1])

diagnose.embeddings(np.random.default_rng(0).standard_normal((500, 64)))
before = own_memory()
x = np.load(sys.argv[1], mmap_mode="r")
resource.setrlimit(resource.RLIMIT_DATA, (before + int(sys.argv[2]), -1))
print(diagnose.embeddings(x, sample=1024).verdict)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and limits the data segment")
def test_memory_maps_are_read_in_blocks(tmp_path):
    n, d = 200_000, 64
    path = tmp_path / "x.npy"
    x = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(n, d))
    generator = np.random.default_rng(0)
    for start in range(0, n, 20_000):
        x[start : start + 20_000] = generator.standard_normal((20_000, d), dtype=np.float32)
    x.flush()
    in_float64 = 8 * n * d
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), str(in_float64)],
        check=False, capture_output=True, text=True, env={"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    assert child.stdout.strip() == "healthy"


def test_a_zero_row_and_a_collapse_are_both_said():
    x = randn(16) + 0.01 * randn(64, 16, seed=1)
    x[3] = 0
    report = diagnose.embeddings(x)
    assert (report.verdict, report.also) == ("point_collapse", ("broken_numbers",))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        monitor = diagnose.CollapseMonitor()
        monitor.observe(x)
    said = [str(each.message).split(":")[1].strip() for each in caught]
    assert said == ["point_collapse", "broken_numbers"]
    assert (monitor.records[0]["verdict"], monitor.records[0]["also"]) == tuple(said)
