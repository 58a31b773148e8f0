"""Every number of the retrieval engine that was tuned on a processor, and no other.

Each says its unit, what it decides, and what was measured. Kinds of processor, as they are named
here: "Zen 3" has AVX2 alone, "Zen 4" and "Zen 5" have 8-bit dot products (VNNI) and bfloat16 in
512 bits, "Emerald Rapids" has AMX tiles besides. Times are of one thread and of rows of 384 numbers
unless said. Answers do not depend on any of these numbers.

What a processor does in a nanosecond differs more than a constant can bear: `rates` and `costs`
measure it.
"""

from __future__ import annotations

# ---- products in tiles (scan) ----

# Scores: of a tile; 8 MB of float32, which stay in a shared cache. 0.5 to 4 million took the same
# time on Zen 4, and 1 to 4 million on Zen 5.
TILE_SCORES = 1 << 21
# Numbers: of the codes of a tile, which are copied on the way to a product; 4 MB, which stay in
# cache. Zen 5, 8 queries of 200 000 rows, ms: with 1 MB 14.7, 4 MB 12.4, 32 MB 41, of which 25 are
# for finding memory anew.
TILE_CODES = 1 << 22
# Numbers: of such a copy, whose memory a thread keeps.
KEPT_CODES = 1 << 23
# Scores: of a product in bfloat16, whose memory a thread keeps; 4 MB.
KEPT_SCORES = 1 << 21
# Rows: of a tile at most, where there are few queries.
LONGEST_TILE = 1 << 17
# Blocks: of a tile, that say how much of it passes.
SAMPLED = 4
# Rows: under one maximum, while few are wanted, and where more are; up to how many of a query are
# few. Zen 3, 1024 queries of 39 000, ms: k = 10 with 16 296, with 64 334; k = 100 with 16 544, with
# 8 527, with 4 542. Zen 5: k = 10 with 8, 16, 64 70, 62, 69, k = 100 89, 90, 95.
GROUP = 16
SMALL_GROUP = 4
GROUP_RESULTS = 128

# Parts: into which a tile is cut at most around blocks that cannot be sieved. Zen 5, 39 000 rows of
# which two blocks cannot: see `Sieve.parts`.
SIEVE_PARTS = 3
# Share of a tile: a smaller part does not say whether a screen pays.
JUDGED_SHARE = 1 / 8

# ---- thresholds (scan) ----

# Rows: the first thresholds come from one in so many. Their products are made in float32, at half
# the rate of others (Zen 4); fewer of them make guesses that more rows pass. Zen 4: 256 to 1024
# rows at least took the same time. Zen 5, k = 10 and 100: one in 20 67 and 94, 40 62 and 90, 80 64
# and 84.
FIRST_SHARE = 40
# Rows: of these, at least and at most.
FEWEST_FIRST = 1024
MOST_FIRST = 8192
# Rows: of these, at least, for each that is wanted.
FIRST_WANTED = 4
# Tiles: over which they are spread.
FIRST_TILES = 4
# Times as many rows: are seen before thresholds are raised again. Zen 4, ms: Gaussian 200 000 x 384
# with 4 137, with 2 129; real 39 000, k = 100, with 4 112, with 2 119. Zen 5, 1024 queries of real
# 39 000, k = 10 and 100: with 2 65 and 90, 3 65 and 88, 4 62 and 90, 8 67 and 86.
GROWTH = 4
# Times k rows a query: may wait before thresholds are raised in any case.
MOST_PENDING = 32
# Rows: of a pool, whose memory (33 bytes each) is freed by scoring them before their time.
CROWDED = 1 << 22
# Scores: that a wider screen has to multiply again cost so many times what others do.
REPEATED_COST = 1.2

# ---- batches and threads (engine, search) ----

# Queries: of a batch; enough for a product at full speed.
MOST_QUERIES = 1024
# Results: of a batch; with a few candidates for each they take 100 MB at most.
MOST_RESULTS = 1 << 20
# Queries: that are worth a thread of their own. 39 000 rows on two threads, in one batch and in
# two, ms: Zen 4, 1024 queries, k = 10 68 and 66, k = 100 107 and 103, k = 1000 544 and 374; 256
# queries, k = 10, 25 and 32. Zen 3, 1024 queries: 189 and 152, 289 and 207, 771 and 575; 256
# queries 48 and 56.
THREAD_QUERIES = 512
# Results of a query: so many, or a multiple of them, make fewer queries worth a thread. Zen 4, 256
# queries of 12 000 rows, k = 1000: 101 ms in one batch, 86 in two.
MANY_RESULTS = 250
# Queries: from which a corpus is coded that is searched once. About 1 ns a number against 0.01 ns
# for each query. 39 000 rows, ms with and without: Zen 3, 48 queries 55 and 57, 96 queries 66 and
# 74; Zen 4 56 and 61, 68 and 96.
CODING_PAYS = 64
# Queries: so few are multiplied as bfloat16 with the codes.
FEW_QUERIES = 2
# Numbers: of rows that are made for a product of floats at a time, at most; 4 MB.
FLOAT_NUMBERS = 1 << 20

# ---- all rows ranked at once (ranked) ----

# Share: of what a wanted row takes otherwise (`costs.pair`), that is spared by ranking all rows.
# Zen 5, 256 queries, ms by ranking and by a scan: 12 000 rows, k = 1000 50 and 62, k = 500 35 and
# 36, k = 300 29 and 26; 39 000 rows, k = 1000 148 and 77.
RANKED_SPARES = 0.4
# ns: to find those that pass among the float32 scores, beyond what a float screen takes (Zen 5).
RANKED_NS = 1.5
# Queries: at least; to make unit rows of all takes as long as so many products.
RANKED_QUERIES = 16
# Scores: of the queries that are ranked together, 16 MB of float32.
RANKED_SCORES = 1 << 22
# Numbers: of all rows, at most; they are read again for every so many queries.
RANKED_NUMBERS = 1 << 24
# Rows: multiplied at a time; 2 MB of scores with 256 queries.
RANKED_ROWS = 1 << 11
# Length: of the longest centred row, below which rows are centred before they are multiplied.
RANKED_RADIUS = 0.5

# ---- coding (codes) ----

# Numbers: coded at a time, in 8 MB of scratch a thread. (200 000, 384) on Zen 4, ms on one and two
# threads: 202 and 121; half as many 219 and 134, where Python and its lock show; twice as many 224
# and 157, which leave the cache.
CODED_NUMBERS = 1 << 19
# Numbers: of the chunks of all threads; 64 MB of scratch.
CODING_SCRATCH = 1 << 22

# ---- candidates ----

# Steps: in which candidates of a query are counted at most, to find what the k-th of them reaches.
# Zen 5, 1024 queries of 39 000, ms: k = 10 with 1024 59, 512 58, 256 57, 128 57; k = 100 89, 87,
# 85, 86.
COUNTED_STEPS = 256
# Numbers: of the table that candidates are sorted in, beyond four times the candidates.
WIDEST_TABLE = 1 << 20

# ---- heads for few queries (few) ----

# Numbers: of the rows of a segment, from which on it gets heads; what lies around a product takes
# as long as reading a quarter of these.
FEW_NUMBERS = 1 << 23
# Searches: of an index, before its heads are coded. Zen 5, one query of 200 000 rows, ms: by whole
# codes 8.8, by heads 3.8, and to code these 400; on two threads 5.6, 3.9 and 320.
FEW_SEARCHES = 16
# Numbers: of a head, in steps that `FewQueriesScreen` reads.
FEW_STEP = 64
# Share: of the time of a search without heads, that one with them may promise to take.
FEW_WORTH = 2 / 3
# ns: to read a code for one query. Zen 5: 77 million in 6.1 ms.
FEW_CODE_NS = 0.08
# Rows: of a sample, on which widths of heads are tried.
FEW_SAMPLE = 4096
# Rows: scored for a first threshold, for each that is wanted, and besides.
FEW_FIRST = 4
FEW_FIRST_MORE = 32
# Searches: that heads did not help, more than helped, after which they are given up.
FEW_LOST = 8

# ---- joins (heads, sweep, rounds, dense) ----

# Share of the time of a product of whole codes: that a head may take, to be worth its while.
PROJECTION_WORTH = 0.8
# Times d^2 pairs: there must be, to be worth the eigenvectors of a d x d matrix.
PROJECTION_PAIRS = 512
# Numbers: of rows whose heads are made at a time; 1 MB.
PROJECTION_NUMBERS = 1 << 18
# Parts: for each thread, into which products and rows for heads are cut. Zen 5, two threads, ms
# quiet and beside one busy process, to choose a head of 20 000 rows and to make their heads: 1 part
# 85 and 140, 38 and 69; 4 parts 87 and 139, 39 and 64; by torch's threads 78 and 340, 33 and 200.
PROJECTION_SHARE = 4
# Pairs: of a round; about 24 bytes each while they are collected, as much again to sort them.
ROUND_PAIRS = 1 << 21
# Queries: multiplied together.
ROUND_BATCH = 1024
# Batches: for each thread that takes them apart, at least, if a batch has so many queries then. Zen
# 5, two threads, ms quiet and beside one busy process: 5000 rows in batches of 1024 47 and 64, 512
# 45 and 61, 256 48 and 62, 128 66 and 80; by torch's threads, batch by batch, 52 and 117. 20 000
# rows in batches of 1024 354 and 804, 512 381 and 844.
ROUND_SHARE = 2
ROUND_BATCH_LEAST = 512
# Queries: of the first round, and of any.
FIRST_ROUND = 1 << 11
LONGEST_ROUND = 1 << 14
# Numbers: that the queries of a round may hold.
ROUND_NUMBERS = 1 << 23
# Numbers: of rows that are multiplied in float64 at a time; 2 MB, which stay in cache.
DENSE_NUMBERS = 1 << 18

# ---- what a score costs beside its product (costs) ----

# ns: to keep, move and sort a candidate. Zen 4 about 100: k = 1000: 0.8 million in 120 ms.
CANDIDATE_NS = 100.0
# ns: to look at a sieved score, and at one of a float screen with its maxima. Zen 4 0.2 and 1.
SIEVED_NS = 0.2
FLOAT_SCORE_NS = 1.0
# Share: of the rows that int8 lets through beyond those wanted, whose scores bfloat16 spares, whose
# bound is half as wide. Zen 5, int8 and bfloat16 alone, ms: 1024 queries of 39 000, k = 100 95 and
# 163, k = 1000 419 and 430; 256 of 12 000, k = 100 16 and 22, k = 1000 66 and 58.
BFLOAT16_SPARES = 0.3

# ---- a filter (selection) ----

# Queries: whose pass over a row takes as long as to gather and code it. Zen 5: 2.2 ns a number for
# codes, and 0.13 for one query that passes over rows in memory.
CODED_AS_QUERIES = 16
# Pairs: of queries and the rows that they may find, which are scored one by one instead; 4 ms.
SCORED_PAIRS = 1 << 12
# Pairs: that are scored at once, with 40 bytes each.
SCORED_PAIRS_AT_ONCE = 1 << 20
