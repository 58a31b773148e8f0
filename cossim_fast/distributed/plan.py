"""What a job would take, without doing any of it."""

from __future__ import annotations

from dataclasses import dataclass

from cossim_fast.distributed.driver import Job

# [operations a second and core] Products of int8 codes on a core of Zen 4; 940 on Zen 5, 160 on
# Zen 3 (AVX2).
RATE = 400e9


@dataclass(frozen=True)
class StagePlan:
    """One stage of a job.

    Attributes:
        title: what its tasks do.
        tasks: how many there are.
        bytes_read: of the files of embeddings, by all of them.
        bytes_written: of numbers, at most; pairs of a join, 20 bytes each, are not counted.
        operations: multiplications and additions of products.
        memory: bytes that a task declares, at most.
    """

    title: str
    tasks: int
    bytes_read: int
    bytes_written: int
    operations: float
    memory: int


@dataclass(frozen=True)
class Plan:
    """What a job would take; printed as a table.

    Attributes:
        operation: which function.
        stages: one after the other.
        rate: operations a second and core that are counted with.
    """

    operation: str
    stages: tuple[StagePlan, ...]
    rate: float

    @property
    def tasks(self) -> int:
        """How many tasks there are."""
        return sum(stage.tasks for stage in self.stages)

    @property
    def bytes_read(self) -> int:
        """Bytes of embeddings that are read in all."""
        return sum(stage.bytes_read for stage in self.stages)

    @property
    def bytes_written(self) -> int:
        """Bytes of numbers that are written in all, at most; but for the pairs of a join."""
        return sum(stage.bytes_written for stage in self.stages)

    @property
    def memory(self) -> int:
        """The most that a task declares; a node needs as much for each of its slots."""
        return max((stage.memory for stage in self.stages), default=0)

    @property
    def core_hours(self) -> float:
        """Of products alone, at `rate`; reading and what passes the screen come on top."""
        return sum(stage.operations for stage in self.stages) / self.rate / 3600

    def __str__(self) -> str:
        lines = [
            f"{'stage':10} {'tasks':>7} {'read':>10} {'written':>10} {'memory a task':>14} "
            f"{'core-hours':>11}"
        ]
        lines += [
            f"{stage.title:10} {stage.tasks:7} {_size(stage.bytes_read):>10} "
            f"{_size(stage.bytes_written):>10} {_size(stage.memory):>14} "
            f"{stage.operations / self.rate / 3600:11.3g}"
            for stage in self.stages
        ]
        if len(self.stages) > 1:
            lines.append(
                f"{'all':10} {self.tasks:7} {_size(self.bytes_read):>10} "
                f"{_size(self.bytes_written):>10} {_size(self.memory):>14} {self.core_hours:11.3g}"
            )
        return "\n".join([*lines, f"at {self.rate / 1e9:.0f} G operations a second and core"])


def plan_of(job: Job, rate: float = RATE) -> Plan:
    """Go through the blocks of a job, as far as they are known before it begins."""
    stages = []
    for stage in job.stages():
        blocks = list(stage.blocks())
        stages.append(
            StagePlan(
                stage.title,
                len(blocks),
                sum(block.reads for block in blocks),
                sum(block.writes for block in blocks),
                sum(block.operations for block in blocks),
                max((block.memory for block in blocks), default=0),
            )
        )
    return Plan(job.operation, tuple(stages), rate)


def _size(count: float) -> str:
    """Bytes in the unit that suits them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
