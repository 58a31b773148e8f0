"""Argument validation: every error message about an argument is worded here.

`cosine_similarity` stands in for torch's function, so its errors have torch's types
(RuntimeError, IndexError, TypeError); everything else raises ValueError or TypeError.
"""

from cossim_fast._checks.arrays import *  # noqa: F403
from cossim_fast._checks.functions import *  # noqa: F403
from cossim_fast._checks.losses import *  # noqa: F403
from cossim_fast._checks.ops import *  # noqa: F403
from cossim_fast._checks.search import *  # noqa: F403
from cossim_fast._checks.tensors import *  # noqa: F403
