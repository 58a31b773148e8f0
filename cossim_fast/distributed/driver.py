"""A job is done in stages of blocks: those whose files are missing are computed, by an engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

from cossim_fast.distributed import outputs
from cossim_fast.distributed.grid import Block
from cossim_fast.distributed.manifest import Manifest
from cossim_fast.distributed.shards import ShardSet
from cossim_fast.retrieval.progress import Progress

# What a block says of itself: kept with its file, so that a rerun knows it of blocks that are done.
Summary = dict[str, Any]
# Where blocks are that are of no use once the job is done.
SCRATCH = "_blocks/"
# Files that are deleted at a time.
_DELETED = 16


@dataclass(frozen=True)
class Stage:
    """Blocks that do not wait for each other.

    Attributes:
        title: what they do.
        blocks: yields them, with what is known as each is asked for.
        count: how many there are.
        ended: told of each block that is done, with its summary.
        serves: for which files of the result a block is needed.
        learns: whether the summaries of blocks that were done before are of use.
    """

    title: str
    blocks: Callable[[], Iterator[Block]]
    count: int
    ended: Callable[[Block, Summary], None]
    serves: Callable[[Block], list[str]]
    learns: bool = True


class Job(Protocol):
    """All that has to be done for a result.

    Attributes:
        operation: the name of the public function.
        lines: how many the result has.
        unfit: how many rows hold NaN or an infinity, by file.
    """

    operation: str

    @property
    def lines(self) -> int:
        """How many the result has, once it is done."""

    @property
    def unfit(self) -> Counter[str]:
        """How many rows hold NaN or an infinity, by file."""

    def parameters(self) -> dict[str, Any]:
        """On what the result depends, beside the inputs."""

    def inputs(self) -> dict[str, ShardSet]:
        """The files that are read, by what they are."""

    def grid(self) -> list[dict[str, Any]]:
        """Every file that is written: its name, and of which rows it is."""

    def stages(self) -> list[Stage]:
        """One after the other."""


class Engine(Protocol):
    """Something that computes blocks."""

    def run(self, tasks: Iterable[Block]) -> Generator[tuple[Block, Any], None, None]:
        """Yield each block with what its function returned; closed, it cancels the rest."""


def work(job: Job, manifest: Manifest, engine: Engine, *, resumed: bool, progress: bool) -> int:
    """Do what is missing of a job, and return how many blocks that were.

    Args:
        job: what to do.
        manifest: of it.
        engine: computes blocks.
        resumed: whether files may be there.
        progress: whether to show a bar for each stage.

    Raises:
        Exception: what a block raised. All files that are there stay.
    """
    names = {str(block["name"]) for block in job.grid()}
    done = names - set(manifest.missing()) if resumed else set()
    computed = 0
    for stage in job.stages():
        with (
            Progress(progress, stage.title, stage.count, unit="blocks") as bar,
            # Closed at once where a stage refuses a result: what is in flight is of no use.
            closing(engine.run(_missing(stage, manifest.output, done, bar))) as ended,
        ):
            for block, summary in ended:
                stage.ended(block, summary)
                computed += 1
                bar.update(1)
    manifest.finish()
    scratch = [name for name in names if name.startswith(SCRATCH)]
    with ThreadPoolExecutor(_DELETED) as pool:
        list(pool.map(lambda name: outputs.delete_block(manifest.output, name), scratch))
    return computed


def _missing(stage: Stage, output: str, done: set[str], bar: Progress) -> Iterator[Block]:
    """The blocks of a stage that have to be computed; the stage is told of those that are done."""
    for block in stage.blocks():
        if done.issuperset((block.name, *block.also)):
            if stage.learns:
                stage.ended(block, outputs.read_summary(output, block.name))
        elif not done.issuperset(stage.serves(block)):
            yield block
            continue
        bar.update(1)
