"""A driver for tests to kill: python ray_driver.py ADDRESS QUERIES CORPUS OUTPUT."""

import sys

from cossim_fast import distributed

if __name__ == "__main__":
    address, queries, corpus, output = sys.argv[1:]
    done = distributed.topk(
        queries, corpus, k=10, output=output, queries_per_task=300, rows_per_task=250,
        address=address,
    )  # fmt: skip
    print(done.computed)
