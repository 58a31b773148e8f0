"""The k nearest rows: batches of queries, the pass over a corpus, candidates."""
