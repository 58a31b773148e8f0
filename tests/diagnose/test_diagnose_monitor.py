"""The monitor in training runs as they are written: hooks, logs, AMP, compile, DDP."""

import copy
import csv
import io
import json
import time
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from cossim_fast import diagnose
from cossim_fast.diagnose import CollapseMonitor, CollapseWarning
from diagnose_processes import LONGEST_WAIT, train_in_process


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Collapsing(nn.Module):
    """Adds a constant that outweighs the input from a given call on."""

    def __init__(self, at):
        super().__init__()
        self.at, self.calls = at, 0

    def forward(self, x):
        offset = 1000.0 * (self.calls >= self.at)
        self.calls += 1
        return x + offset


def test_warns_once_at_the_step_where_collapse_begins():
    network = Collapsing(at=6)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with CollapseMonitor(network, every=2) as monitor:
            for step in range(12):
                network(randn(64, 16, seed=step))
    assert [record["verdict"] for record in monitor.records] == [
        *["healthy"] * 3,
        *["point_collapse"] * 3,
    ]
    assert len(caught) == 1
    assert str(caught[0].message).startswith("step 6: point_collapse")


def test_two_healthy_groups_and_labels_do_not_alarm():
    two_towers = randn(2, 64)[torch.arange(128) % 2] + 0.3 * randn(128, 64, seed=1)
    two_points = randn(2, 64)[torch.arange(128) % 2] + 0.01 * randn(128, 64, seed=1)
    monitor = CollapseMonitor(every=1, warn=False)
    monitor.observe(two_towers)
    monitor.observe(two_points)
    monitor.observe(two_points, labels=torch.arange(128) % 2)
    monitor.labels = ["a", "b"] * 64
    monitor.observe(two_points)
    monitor.observe(two_points[:100])
    verdicts = ["healthy", "dimensional_collapse", "healthy", "healthy", "dimensional_collapse"]
    assert [record["verdict"] for record in monitor.records] == verdicts
    (reason,) = monitor.skipped
    assert reason.startswith("labels of another number")


@pytest.mark.parametrize("last", [nn.Identity(), nn.Sigmoid(), nn.ReLU(), nn.Flatten(0)])
def test_a_regression_head_does_not_alarm(last):
    head = nn.Sequential(nn.Linear(8, 1), last)
    with CollapseMonitor(head, every=1) as monitor:
        for step in range(3):
            head(randn(64, 8, seed=step))
    assert {record["verdict"] for record in monitor.records} <= {"single_feature"}
    assert len(monitor.records) + sum(monitor.skipped.values()) == 3


def test_labels_are_taken_with_the_rows_that_are_measured():
    labels = torch.arange(1000) // 7 % 2
    x = randn(2, 64)[labels] + 0.01 * randn(1000, 64, seed=1)
    layer = nn.Identity()
    with CollapseMonitor(layer, rows=50, labels=labels) as monitor:
        layer(x)
    assert (monitor.records[0]["rows"], monitor.records[0]["verdict"]) == (50, "healthy")


def test_records_are_those_of_the_report():
    batch = randn(40, 8)
    monitor = CollapseMonitor()
    monitor.observe(batch)
    geometry = diagnose.embeddings(batch).geometry
    (record,) = monitor.records
    for name in ("mean_cosine", "distance", "rankme", "participation_ratio", "leading"):
        assert record[name] == pytest.approx(getattr(geometry, name), rel=1e-9)


@pytest.mark.parametrize(
    ("second", "finding"),
    [
        (lambda x: x, "same_object"),
        (lambda x: x.detach(), "shared_storage"),
        (lambda x: x.clone(), "equal_values"),
    ],
)
def test_comparison_with_itself_is_named_once(second, finding):
    monitor = CollapseMonitor(every=1)
    features = randn(16, 8)
    with pytest.warns(CollapseWarning, match=f"comparison 0: {finding}") as caught:
        found = [monitor.compare(features, second(features)) for _ in range(3)]
    assert found == [finding] * 3
    assert len(caught) == 1


def comparison_of_copies(module):
    features = randn(16, 8)
    with (
        CollapseMonitor(module, every=1) as monitor,
        pytest.warns(CollapseWarning, match="equal_values") as caught,
    ):
        monitor.compare(features, features.clone())
    return str(caught[0].message)


def test_equal_values_have_causes_of_their_own():
    layer = nn.Sequential(nn.Linear(8, 8), nn.Dropout())
    training = comparison_of_copies(layer)
    evaluated = comparison_of_copies(layer.eval())
    frozen = comparison_of_copies(layer.train().requires_grad_(False))
    for text in (training, evaluated, frozen, comparison_of_copies(None)):
        assert "Keep a copy" not in text
        for cause in ("clone()", "frozen weights", "eval()", "dropout", "a loader that repeats"):
            assert cause in text
    assert "Seen here" not in training
    assert "Seen here: the watched module is in eval()" in evaluated
    assert "Seen here: no parameter of the watched module requires a gradient" in frozen


def test_memory_is_checked_between_records():
    monitor = CollapseMonitor(every=100, warn=False)
    first, second = randn(16, 8), randn(16, 8, seed=1)
    assert monitor.compare(first, None) is None
    assert monitor.compare(first, second) is None
    assert monitor.compare(first, first[:8]) == "shared_storage"
    assert monitor.records == []


FRAMES = randn(20, 64)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (FRAMES[:-1], FRAMES[1:]),
        (FRAMES[:12], FRAMES[8:]),
        (FRAMES[:, :-1], FRAMES[:, 1:]),
        (FRAMES[:8], FRAMES.flip(0)[:8]),
        (FRAMES[::2], FRAMES[1:][::2]),
        (FRAMES[:16, :16], FRAMES[:16, :16].T),
        (FRAMES[:1].expand(20, 64), FRAMES),
        (FRAMES[0].unfold(0, 32, 1)[:-1], FRAMES[0].unfold(0, 32, 1)[1:]),
    ],
)
def test_an_overlap_alone_is_no_comparison_with_itself(one, two):
    monitor = CollapseMonitor(every=2)
    for _ in range(3):
        monitor.compare(one, two)
    assert [abs(record["mean_cosine"]) < 0.5 for record in monitor.records] == [True, True]
    assert not monitor.skipped


def test_rows_that_are_mostly_the_same_memory_are():
    x = randn(21, 64)
    monitor = CollapseMonitor(every=1)
    with pytest.warns(CollapseWarning, match="shared_storage"):
        assert monitor.compare(x, x[:13]) == "shared_storage"
    with pytest.warns(CollapseWarning, match="equal_values"):
        assert monitor.compare(torch.cat([x[:13], x[:2]]), x[:15]) == "equal_values"


def test_different_batches_compare_quietly():
    monitor = CollapseMonitor(every=1)
    assert monitor.compare(randn(16, 8), randn(16, 8, seed=1)) is None
    assert monitor.records[0]["mean_cosine"] == pytest.approx(
        float(F.cosine_similarity(randn(16, 8), randn(16, 8, seed=1)).mean()), abs=1e-6
    )


def test_comparisons_are_along_the_axis_of_torch():
    maps, others = randn(16, 512, 1, 1), randn(16, 512, 1, 1, seed=1)
    maps[:, :, 0, 0][torch.arange(16), torch.arange(16)] = 0
    tokens, more = randn(5, 7, 32), randn(5, 7, 32, seed=1)
    monitor = CollapseMonitor(every=1)
    for a, b, dim in ((maps, others, 1), (tokens, more, 2), (tokens, more, 0), (tokens, more, -1)):
        given = {} if dim == 1 else {"dim": dim}
        assert monitor.compare(a, b, **given) is None
        expected = float(F.cosine_similarity(a, b, dim=dim).mean())
        assert monitor.records[-1]["mean_cosine"] == pytest.approx(expected, abs=1e-6)
    with pytest.warns(CollapseWarning, match="shared_storage"):
        assert monitor.compare(maps, maps.view_as(maps)) == "shared_storage"
    assert not monitor.skipped


def test_the_axis_of_the_features_can_be_told():
    tokens = randn(4, 32, 6)
    monitor = CollapseMonitor(every=1, dim=1, warn=False)
    monitor.observe(tokens)
    expected = diagnose.embeddings(tokens.movedim(1, 2).flatten(0, 1)).geometry
    assert monitor.records[0]["rows"] == 24
    assert monitor.records[0]["rankme"] == pytest.approx(expected.rankme, rel=1e-9)
    monitor.compare(tokens, tokens.clone())
    assert monitor.records[1]["verdict"] == "equal_values"


def test_a_shorter_last_batch_is_compared_on_the_rows_both_have():
    monitor = CollapseMonitor(every=1)
    assert monitor.compare(randn(5, 8), randn(16, 8, seed=1)) is None
    assert monitor.compare(randn(500), randn(500, seed=1)) is None
    expected = F.cosine_similarity(randn(500), randn(500, seed=1), dim=0)
    assert monitor.records[1]["mean_cosine"] == pytest.approx(float(expected), abs=1e-6)


def test_hook_is_removed_after_an_error():
    layer = nn.Linear(4, 4)
    with pytest.raises(RuntimeError, match="shapes"), CollapseMonitor(layer):
        layer(randn(3, 5))
    assert len(layer._forward_hooks) == 0


def test_outputs_are_untouched_and_keep_their_graph():
    layer = nn.Linear(8, 8)
    x = randn(16, 8)
    expected = layer(x)
    with CollapseMonitor(layer, every=1):
        seen = layer(x)
    assert torch.equal(seen, expected)
    seen.sum().backward()
    assert layer.weight.grad is not None


def test_copies_and_pickles_of_the_module_are_not_watched():
    layer = nn.Linear(8, 8)
    with CollapseMonitor(layer, every=1, warn=False) as monitor:
        copy.deepcopy(layer)(randn(16, 8))
        buffer = io.BytesIO()
        torch.save(layer, buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=False)(randn(16, 8))
        assert monitor.outputs == 0
        layer(randn(16, 8))
        assert monitor.outputs == 1


@pytest.mark.parametrize(
    "wrap",
    [lambda x: x, lambda x: (x, None), lambda x: {"hidden": x}, lambda x: [(x,)]],
    ids=["tensor", "tuple", "dict", "nested"],
)
def test_outputs_of_many_kinds(wrap):
    monitor = CollapseMonitor()
    monitor.observe(wrap(randn(16, 2, 4)))
    assert monitor.records[0]["rows"] == 16


@pytest.mark.parametrize("output", [None, "text", randn(16), randn(3, 4), torch.empty(0, 4), ()])
def test_outputs_that_say_nothing_are_passed_over(output):
    monitor = CollapseMonitor()
    monitor.observe(output)
    assert (monitor.outputs, monitor.records) == (1, [])


def test_large_batches_are_measured_on_some_rows():
    monitor = CollapseMonitor(rows=50)
    monitor.observe(randn(1000, 8))
    assert monitor.records[0]["rows"] == 50


class Writer:
    def __init__(self):
        self.scalars = {}

    def add_scalar(self, name, value, step):
        self.scalars[name, step] = value


def test_logs(tmp_path):
    writer, called = Writer(), []
    logs = [tmp_path / "log.csv", str(tmp_path / "log.jsonl"), writer, called.append]
    monitor = CollapseMonitor(every=2, log=logs)
    for step in range(4):
        monitor.observe(randn(32, 8, seed=step))
    monitor.compare(randn(8, 4), randn(8, 4, seed=1))
    assert called == monitor.records
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == monitor.records
    with (tmp_path / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "2", "0"]
    assert float(rows[1]["mean_cosine"]) == monitor.records[1]["mean_cosine"]
    assert writer.scalars["collapse/output/rankme", 2] == monitor.records[1]["rankme"]


def test_jsonl_has_no_nan(tmp_path):
    monitor = CollapseMonitor(log=tmp_path / "log.jsonl", warn=False)
    monitor.observe(torch.full((32, 8), float("nan")))
    record = json.loads((tmp_path / "log.jsonl").read_text(), parse_constant=pytest.fail)
    assert record["norm"] is None
    assert record["verdict"] == "broken_numbers"


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"every": 0}, ValueError, "expected every >= 1, got 0"),
        ({"every": 1.5}, TypeError, "expected every to be an int"),
        ({"rows": 1}, ValueError, "expected rows >= 2, got 1"),
        ({"log": "run.txt"}, ValueError, "ending in .csv or .jsonl, got 'run.txt'"),
        ({"log": 3}, TypeError, "a path, a SummaryWriter, or a callable"),
    ],
)
def test_errors_say_what_was_expected(arguments, error, words):
    with pytest.raises(error, match=words):
        CollapseMonitor(**arguments)


def test_amp():
    layer = nn.Linear(64, 64)
    with CollapseMonitor(layer) as monitor, torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(randn(48, 64))
    assert output.dtype == torch.bfloat16
    expected = diagnose.embeddings(output.detach()).geometry
    assert monitor.records[0]["rankme"] == pytest.approx(expected.rankme, rel=1e-9)


@pytest.mark.parametrize("attach_to", ["inner", "compiled"])
def test_torch_compile(attach_to):
    torch._dynamo.reset()
    inner = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
    compiled = None if attach_to == "inner" else torch.compile(inner, backend="aot_eager")
    with CollapseMonitor(compiled or inner, every=2, warn=False) as monitor:
        compiled = compiled or torch.compile(inner, backend="aot_eager")
        for step in range(4):
            compiled(randn(32, 8, seed=step)).sum().backward()
    assert [record["step"] for record in monitor.records] == [0, 2]


def run_in_processes(function, path):
    """Run a function in two processes, neither of which outlives this call."""
    context = torch.multiprocessing.spawn(function, (path,), nprocs=2, join=False)
    deadline = time.monotonic() + 2 * LONGEST_WAIT
    try:
        while not context.join(timeout=1):
            assert time.monotonic() < deadline, f"expected an end within {2 * LONGEST_WAIT} s"
    finally:
        for process in context.processes:
            process.kill()
            process.join()


@pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")
def test_distributed_data_parallel(tmp_path):
    run_in_processes(train_in_process, str(tmp_path))
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [rank["records"] for rank in ranks] == [2, 2]
    assert [rank["warnings"] for rank in ranks] == [1, 0]
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2
