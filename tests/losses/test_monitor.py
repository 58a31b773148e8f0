"""CollapseMonitor beside a loss: what it says is what the matrix says, and it disturbs nothing."""

import csv
import math
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from cossim_fast.diagnose import CollapseMonitor, CollapseWarning
from cossim_fast.losses import ClipLoss, InfoNCE, NTXentLoss, SigLipLoss, clip, info_nce


def rows(n, d, seed, near=None, noise=0.5):
    found = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return found if near is None else near + noise * found


def pairs(n=40, d=16, noise=0.5):
    x = rows(n, d, 0)
    return x.requires_grad_(), rows(n, d, 1, x.detach(), noise).requires_grad_()


def naive(x, y, positives, scale, symmetric=False):
    """What a record holds, from the whole matrix in float64."""
    cosines = F.normalize(x.detach().double()) @ F.normalize(y.detach().double()).T
    positive = torch.zeros_like(cosines, dtype=torch.bool)
    kept = positives >= 0
    positive[kept.nonzero()[:, 0], positives[kept]] = True
    other = ~positive
    if x is y:
        other.fill_diagonal_(False)
    softmaxes = [(cosines[kept], positive[kept], other[kept])]
    if symmetric:
        own = positives[kept]
        softmaxes.append((cosines[:, own].T, positive[:, own].T, other[:, own].T))
    weights, entropies = [], []
    for c, p, negative in softmaxes:
        for row, at, rest in zip(c, p, negative, strict=True):
            w = torch.softmax(scale * row[rest], 0)
            total = torch.logsumexp(scale * row[rest], 0) - scale * row[at][0]
            weights.append(torch.sigmoid(total))
            entropies.append(torch.special.entr(w).sum())
    q, h = torch.stack(weights), torch.stack(entropies)
    return {
        "positive_cosine": cosines[positive].mean().item(),
        "negative_cosine": cosines[other].mean().item(),
        "temperature": 1 / scale,
        "saturated": (q < 0.01).double().mean().item(),
        "effective_negatives": ((q * h).sum() / q.sum()).exp().item(),
    }


def record_of(loss, *args, **rest):
    with CollapseMonitor(loss, every=1, warn=False) as monitor:
        loss(*args, **rest)
    assert not monitor.skipped
    return monitor.records[0]


def agree(record, expected):
    for name, value in expected.items():
        assert record[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("temperature", [0.02, 0.1, 1.0])
def test_a_record_is_what_the_matrix_says(temperature, symmetric, reduction):
    x, y = pairs(noise=1.0)
    loss = InfoNCE(temperature, symmetric=symmetric, reduction=reduction)
    record = record_of(loss, x, y)
    agree(record, naive(x, y, torch.arange(40), 1 / temperature, symmetric))
    assert (record["source"], record["verdict"], record["negatives"]) == ("loss", "healthy", 39)


def test_rows_without_a_positive_do_not_count():
    x, y = pairs()
    y = torch.cat([y, rows(30, 16, 5)])
    positives = torch.randperm(70, generator=torch.Generator().manual_seed(2))[:40]
    positives[::3] = -1
    agree(record_of(InfoNCE(0.1), x, y, positives=positives), naive(x, y, positives, 10.0))


def test_of_several_tiles():
    x, y = pairs(1100, 24)
    agree(record_of(InfoNCE(0.1), x, y), naive(x, y, torch.arange(1100), 10.0))


def test_nt_xent_clip_and_siglip():
    x, y = pairs(noise=1.0)
    both = torch.cat([x, y])
    partners = torch.arange(80).roll(40)
    agree(record_of(NTXentLoss(0.2), x, y), naive(both, both, partners, 5.0))
    scale, bias = torch.tensor(12.0, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    expected = naive(x, y, torch.arange(40), 12.0, symmetric=True)
    agree(record_of(ClipLoss(), x, y, scale), expected)
    agree(record_of(ClipLoss(), x, y, scale, bias), expected)
    record = record_of(SigLipLoss(), x, y, scale, bias)
    names = ("positive_cosine", "negative_cosine", "temperature")
    agree(record, {name: expected[name] for name in names})
    assert "saturated" not in record


def test_the_number_itself_can_be_observed():
    x, y = pairs()
    monitor = CollapseMonitor(every=1)
    loss = info_nce(x, y)
    monitor.observe(loss)
    monitor.observe(2 * clip(x, y, 5.0))
    loss.backward()
    monitor.observe(loss)
    assert [each["temperature"] for each in monitor.records] == pytest.approx([0.07, 0.2, 0.07])
    assert monitor.records[0] | {"step": 2} == monitor.records[2]
    monitor.observe(info_nce(x.detach(), y.detach()))
    monitor.observe(F.mse_loss(x, y))
    changed = 1 * x
    loss = info_nce(changed, y)
    changed.add_(1)
    monitor.observe(loss)
    assert sum(monitor.skipped.values()) == 3
    assert "a loss that made its gradients" in monitor.summary()


def train(watched, steps=6):
    torch.manual_seed(0)
    x, y = pairs()
    scale = torch.nn.Parameter(torch.tensor(10.0))
    loss = ClipLoss()
    optimiser = torch.optim.SGD([x, y, scale], lr=0.1)
    monitor = CollapseMonitor(loss, every=2) if watched else None
    values = []
    for _ in range(steps):
        value = loss(x, y, scale)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        values.append(value.item())
    return values, x, y, scale, monitor, loss


def test_training_is_the_same_bit_by_bit_with_a_monitor():
    values, x, y, scale, *_ = train(watched=False)
    seen, *tensors, monitor, loss = train(watched=True)
    assert seen == values
    for one, other in zip((x, y, scale), tensors, strict=True):
        assert torch.equal(one, other)
    assert [record["step"] for record in monitor.records] == [0, 2, 4]
    monitor.close()
    pickle.loads(pickle.dumps(loss))


def watched(loss, calls):
    """The records and the warnings of these calls of a loss."""
    with (
        warnings.catch_warnings(record=True) as caught,
        CollapseMonitor(loss, every=1) as monitor,
    ):
        warnings.simplefilter("always")
        for call in calls:
            call()
    texts = [str(each.message) for each in caught if each.category is CollapseWarning]
    return [record["verdict"] for record in monitor.records], texts


@pytest.mark.parametrize("watch", [False, True])
def test_nothing_is_recomputed_for_it(watch):
    x, y = pairs()
    calls = []
    loss = InfoNCE()

    def step(x, y):
        calls.append(1)
        return loss(2 * x, 3 * y)

    monitor = CollapseMonitor(loss if watch else None, every=1)
    checkpoint(step, x, y, use_reentrant=False).backward()
    assert len(calls) == 2
    assert [each["verdict"] for each in monitor.records] == ["healthy"] * watch


def test_a_temperature_that_freezes_is_told_once_with_what_it_did():
    x, y = pairs(noise=0.1)
    loss = ClipLoss()
    calls = [lambda s=s: loss(x, y, s) for s in (14.0, 60.0, 150.0, 400.0, 900.0)]
    verdicts, texts = watched(loss, calls)
    assert verdicts == ["healthy", "healthy", *["temperature_runaway"] * 3]
    (text,) = texts
    assert text.startswith("step 2: temperature_runaway: the temperature is 0.00667")
    assert "100% of the softmaxes give all but 1 % to the positive" in text
    assert "clamp" in text


def test_a_temperature_that_melts_is_told_with_what_it_did():
    x, y = pairs()
    loss = InfoNCE()

    def at(temperature):
        loss.temperature = temperature
        loss(x, y)

    verdicts, texts = watched(loss, [lambda t=t: at(t) for t in (0.7, 1.2, 20.0)])
    assert verdicts == ["healthy", "healthy", "temperature_runaway"]
    assert "weigh 39 of 39 negatives" in texts[0]


def test_no_alarm_of_what_is_usual():
    x, y = pairs(noise=0.1)
    by_softmax, by_pair, fixed = ClipLoss(), SigLipLoss(), InfoNCE(0.005)
    # CLIP's first scale and its clamp, with rows that saturate; SigLIP's first and its trained one.
    usual = {
        by_softmax: [lambda s=s: by_softmax(x, y, s) for s in (14.3, 100.0)],
        by_pair: [lambda s=s: by_pair(x, y, s, -10.0) for s in (10.0, 117.0)],
        fixed: [lambda: fixed(x, y)] * 2,
    }
    for loss, calls in usual.items():
        assert watched(loss, calls) == (["healthy", "healthy"], [])


def test_rows_that_are_not_finite_are_broken_numbers():
    x, y = pairs()
    with torch.no_grad():
        x[3, 0] = math.nan
    loss = InfoNCE()
    verdicts, texts = watched(loss, [lambda: loss(x, y)])
    assert verdicts == ["broken_numbers"]
    assert len(texts) == 1


def test_records_are_logged_beside_those_of_outputs(tmp_path):
    x, y = pairs()
    path = tmp_path / "log.csv"
    monitor = CollapseMonitor(every=1, log=path)
    monitor.observe(x)
    monitor.observe(info_nce(x, y))
    output, loss = csv.DictReader(path.read_text(encoding="utf-8").splitlines())
    assert (output["source"], output["saturated"]) == ("output", "")
    assert (loss["source"], float(loss["temperature"])) == ("loss", pytest.approx(0.07))
