"""Attack files, processes, threads, interrupts and settings: `make test-hostile`.

    python tests/helpers/hostile/run.py [--short] [--seed N] [--only TEXT] [--tries N]

Each try runs in a process and a folder of its own, which are gone afterwards. A try holds if the
answer is that of float64, or if there is an error that says what is wrong; else it failed. Exit
status 1 if one failed, or if an attack did not reach what it attacks.
"""

import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    # What a shell starts in the background ignores Ctrl-C, and so would all that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # The folder of this package, in place of the package itself.
    sys.path[0] = str(Path(__file__).parents[1])
    from hostile.harness import main

    sys.exit(main(description=__doc__))
