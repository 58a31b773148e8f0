"""Why is my cosine similarity always 1? Find the cause, name it, show it."""

from cossim_fast.diagnose import plots
from cossim_fast.diagnose.collapse import CollapseReport, embeddings
from cossim_fast.diagnose.monitor import CollapseMonitor, CollapseWarning
from cossim_fast.diagnose.pairs import PairReport, pair

__all__ = [
    "CollapseMonitor",
    "CollapseReport",
    "CollapseWarning",
    "PairReport",
    "embeddings",
    "pair",
    "plots",
]
