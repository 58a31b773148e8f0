"""Buffers that a copy or a search still needs are left alone, in whatever order streams run."""

import random
from types import SimpleNamespace

import pytest
import torch

from cossim_fast.retrieval.nearest import transfer
from cossim_fast.retrieval.nearest.transfer import Streams, Transport, to_device


class Token:
    done = False


class Event:
    """An event of simulated streams."""

    def __init__(self, device):
        self.device, self.token = device, None

    def record(self, stream):
        self.token = Token()
        stream.work.append(("reach", self.token))
        self.device.log.append("record")

    def synchronize(self):
        while self.token is not None and not self.token.done:
            self.device.step()


class Stream:
    """Work that runs in its order, at any time, unless it waits for another stream's."""

    def __init__(self):
        self.work = []

    def wait_event(self, event):
        if event.token is not None:
            self.work.append(("wait", event.token))


class Simulated:
    """Two streams of which either goes on at random moments: eagerly, lazily, or in between."""

    def __init__(self, seed, direct=False):
        self.draw, self.direct = random.Random(seed), direct
        self.eagerness = self.draw.choice([0, 0.3, 0.9])
        self.compute, self.side = Stream(), Stream()
        self.log, self.spoiled = [], []

    def reads(self, rows):
        return self.direct

    def pinned(self, shape, dtype):
        assert not self.direct
        return torch.full(shape, torch.nan, dtype=dtype)

    def on_device(self, shape, dtype):
        memory = torch.full(shape, torch.nan, dtype=dtype)
        # Whose memory it was before, and who has yet to read it.
        self.later(lambda: self.spoiled.append(bool(memory.isfinite().any())))
        return memory

    def event(self):
        return Event(self)

    def copy(self, target, source):
        self.log.append("copy")
        self.side.work.append(("run", lambda: target.copy_(source)))
        self.go_on()

    def later(self, work):
        self.compute.work.append(("run", work))
        self.go_on()

    def go_on(self):
        while self.draw.random() < self.eagerness:
            self.step(idle=True)

    def step(self, idle=False):
        """Do one thing of one stream that has something to do and does not wait."""
        ready = [
            stream
            for stream in (self.compute, self.side)
            if stream.work and not (stream.work[0][0] == "wait" and not stream.work[0][1].done)
        ]
        if not ready:
            assert idle, "the host waits for what no stream will do"
            return
        kind, what = self.draw.choice(ready).work.pop(0)
        if kind == "run":
            what()
        elif kind == "reach":
            what.done = True

    def finish(self):
        while self.compute.work or self.side.work:
            self.step()


def streamed(device, lengths, *, rows=None, size=10 * 12):
    """What searches of blocks of ten rows saw, and what was sent."""
    corpus = torch.arange(3.0 * sum(lengths)).view(-1, 3)
    seen = []
    blocks = corpus.split(lengths)
    for block in to_device(blocks, device, rows=rows, lasting=device.direct, size=size):
        device.log.append("search")
        device.later(lambda block=block: seen.append(block.clone()))
    device.finish()
    return torch.cat(seen), corpus


LENGTHS = ([7, 40, 3, 1, 12, 10], [10, 10], [4], [35], [10, 0, 5])


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_every_search_sees_its_rows(lengths, direct):
    for seed in range(60):
        device = Simulated(seed, direct)
        seen, corpus = streamed(device, lengths)
        assert torch.equal(seen, corpus)
        assert not any(device.spoiled)


def without(monkeypatch, what):
    """Take one of the waits out."""
    if what == "the host waits for the copy out of a pinned buffer":
        monkeypatch.setattr(Event, "synchronize", lambda self: None)
    elif what == "a search waits for its copy":
        monkeypatch.setattr(Simulated, "later", lambda self, work: (
            self.compute.work.append(("run", work)),
            setattr(self.compute, "work", [w for w in self.compute.work if w[0] != "wait"]),
            self.go_on(),
        ))  # fmt: skip
    elif what == "a copy waits for the search of what it overwrites":
        monkeypatch.setattr(Simulated, "copy", lambda self, target, source: (
            setattr(self.side, "work", [w for w in self.side.work if w[0] != "wait"]),
            self.side.work.append(("run", lambda: target.copy_(source))),
            self.go_on(),
        ))  # fmt: skip
    else:
        true = transfer._Slot.__init__

        def unrecorded(self, *arguments):
            true(self, *arguments)
            self.searched.token = None

        monkeypatch.setattr(transfer._Slot, "__init__", unrecorded)


@pytest.mark.parametrize(
    ("what", "direct"),
    [
        ("the host waits for the copy out of a pinned buffer", False),
        ("a search waits for its copy", False),
        ("a search waits for its copy", True),
        ("a copy waits for the search of what it overwrites", False),
        ("a copy waits for the search of what it overwrites", True),
        ("the first copy waits for what the memory was used for before", False),
        ("the first copy waits for what the memory was used for before", True),
    ],
)
def test_no_wait_can_be_left_out(what, direct, monkeypatch):
    """The simulation finds the fault that each of them prevents."""
    without(monkeypatch, what)
    wrong = 0
    for seed in range(60):
        device = Simulated(seed, direct)
        seen, corpus = streamed(device, LENGTHS[0])
        wrong += not torch.equal(seen, corpus) or any(device.spoiled)
    assert wrong > 0


def test_the_next_block_is_being_copied_while_one_is_searched():
    device = Simulated(0)
    streamed(device, [50])
    steps = [step for step in device.log if step != "record"]
    assert steps == ["copy", "copy", *["search", "copy"] * 3, "search", "search"]


@pytest.mark.parametrize("direct", [False, True])
def test_whoever_stops_leaves_no_copy_behind(direct):
    device = Simulated(0, direct)
    device.eagerness = 0
    blocks = to_device(torch.ones(50, 3).split(7), device, lasting=direct, size=10 * 12)
    next(blocks)
    assert device.side.work
    blocks.close()
    assert not any(kind == "run" for kind, _ in device.side.work)


@pytest.mark.parametrize(("rows", "longest"), [(None, 10), (7, 7), (64, 10)])
def test_no_buffer_is_longer_than_the_corpus(rows, longest):
    asked = []
    device = Simulated(0)
    device.pinned = lambda shape, dtype: asked.append(shape) or torch.empty(shape, dtype=dtype)
    streamed(device, [7], rows=rows)
    assert asked == [(longest, 3)]


def test_a_row_longer_than_a_block_is_a_block():
    seen, corpus = streamed(Simulated(0), [5], size=1)
    assert torch.equal(seen, corpus)


def test_on_cpu_blocks_are_copies():
    rows = torch.ones(5, 3, dtype=torch.float16)
    (block,) = to_device([rows], Transport())
    rows.zero_()
    assert block.dtype == torch.float16
    assert block.tolist() == [[1.0] * 3] * 5


def test_only_what_lasts_is_copied_from_where_it_is():
    device = Simulated(0)
    device.reads = lambda rows: pytest.fail("asked")
    list(to_device([torch.ones(5, 3)], device))


def test_what_is_asked_of_torch_cuda(monkeypatch):
    """Streams of the device, pinned memory, and copies that the host does not wait for."""
    asked = []

    class Entered:
        def __init__(self, stream):
            asked.append(("stream", stream))

        def __enter__(self):
            asked.append("enter")

        def __exit__(self, *raised):
            asked.append("exit")

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: ("compute of", device))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: ("side of", device))
    monkeypatch.setattr(torch.cuda, "stream", Entered)
    device = torch.device("cuda", 3)
    streams = Streams(device)
    assert (streams.compute, streams.side) == (("compute of", device), ("side of", device))
    streams.copy(SimpleNamespace(copy_=lambda *a, **kw: asked.append((a, kw))), "rows")
    copied = (("rows",), {"non_blocking": True})
    assert asked == [("stream", ("side of", device)), "enter", copied, "exit"]
    monkeypatch.setattr(torch, "empty", lambda shape, **options: (shape, options))
    pinned = streams.pinned((2, 3), torch.float16)
    assert pinned == ((2, 3), {"dtype": torch.float16, "device": "cpu", "pin_memory": True})
    rows = SimpleNamespace(is_pinned=lambda: True, is_contiguous=lambda: False)
    assert not streams.reads(rows)
    rows.is_contiguous = rows.is_pinned
    assert streams.reads(rows)
    assert not streams.reads(torch.ones(3))
    there = streams.on_device((2, 3), torch.float16)
    assert there == ((2, 3), {"dtype": torch.float16, "device": device})
