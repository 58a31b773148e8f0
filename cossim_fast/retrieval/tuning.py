"""Every constant of exact search that was tuned on a processor, and nothing else.

The comment above each constant gives its unit in brackets, what it decides, and what was measured.
"Zen 3" is a processor with AVX2 alone; "Zen 4" and "Zen 5" also have 8-bit dot products (VNNI) and
512-bit bfloat16; "Emerald Rapids" also has AMX tiles. Times are in milliseconds, on one thread, for
rows of 384 numbers, unless stated otherwise. No answer depends on any of these constants.

What differs too much between processors for a constant is measured in each process:
`screening.rates` (products) and `screening.costs` (the cost of scoring a pair).
"""

from __future__ import annotations

# ---- tiles and groups (screening/tile, screening/int8, screening/filtered_product, nearest/scan)

# [scores] Size of a tile: 8 MB of float32, which stay in a shared cache. 0.5 to 4 million took the
# same time on Zen 4, and 1 to 4 million on Zen 5.
TILE_SCORES = 1 << 21
# [numbers] Most codes of a tile: each product copies them, and 4 MB stay in cache. Zen 5, 8
# queries, 200 000 rows: 1 MB 14.7, 4 MB 12.4, 32 MB 41 (25 of these for allocating memory again).
TILE_CODES = 1 << 22
# [numbers] Largest copy of codes whose memory a thread keeps for the next product: 8 MB.
KEPT_CODES = 1 << 23
# [scores] Largest bfloat16 product whose memory a thread keeps for the next one: 4 MB.
KEPT_SCORES = 1 << 21
# [rows] Most rows of a tile, which few queries would make longer.
LONGEST_TILE = 1 << 17
# [blocks] How many blocks of a tile are sampled to estimate the share of it that passes.
SAMPLED = 4
# [rows] Rows under one maximum (a group) for k up to GROUP_RESULTS. Zen 5, 1024 queries,
# 39 000 rows: k = 10 with groups of 8, 16, 64 took 70, 62, 69; k = 100 took 89, 90, 95.
GROUP = 16
# [rows] The same for larger k. Zen 3, 1024 queries, 39 000 rows, k = 100: groups of 16 took 544,
# of 8 527, of 4 542; k = 10: of 16 296, of 64 334.
SMALL_GROUP = 4
# [results] The largest k of a query that takes groups of GROUP rows.
GROUP_RESULTS = 128
# [parts] A tile is cut into at most so many parts, to separate the blocks that a filtered product
# cannot multiply. Two of the 609 blocks of 39 000 sentence embeddings are such blocks.
FILTER_PARTS = 3
# [share of a tile] A smaller part of a tile is no evidence of whether a screen pays.
JUDGED_SHARE = 1 / 8

# ---- thresholds (nearest/scan)

# [rows per row] The first thresholds come from one row in 40. Their products return float32, at
# half the rate of filtered ones (Zen 4); fewer rows give lower thresholds, which more rows pass.
# Zen 5, k = 10 and 100: one in 20 took 67 and 94, in 40 62 and 90, in 80 64 and 84.
FIRST_SHARE = 40
# [rows] At least so many rows for the first thresholds. Zen 4: 256 to 1024 took the same time.
FEWEST_FIRST = 1024
# [rows] At most so many rows for the first thresholds, unless k asks for more.
MOST_FIRST = 8192
# [rows per result] At least so many rows for the first thresholds, times k.
FIRST_WANTED = 4
# [tiles] The tiles over which the rows for the first thresholds are spread.
FIRST_TILES = 4
# [ratio] Thresholds are raised again when so many times as many rows were seen. Zen 5, 1024
# queries, 39 000 sentence embeddings, k = 10 and 100: ratio 2 took 65 and 90, 3 65 and 88, 4 62 and
# 90, 8 67 and 86. Zen 4: Gaussian 200 000 rows, 4 took 137, 2 129; 39 000 sentence embeddings,
# k = 100, 4 took 112, 2 119.
GROWTH = 4
# [candidates per result] Thresholds are raised in any case when so many candidates are pending,
# times k, for each query.
MOST_PENDING = 32
# [candidates] A pool with more candidates (33 bytes each) is scored early, to free memory.
CROWDED = 1 << 22
# [ratio] The cost of a score that a wider screen would compute a second time, relative to a first.
REPEATED_COST = 1.2

# ---- batches and threads (nearest/batches, nearest/topk)

# [queries] Most queries of a batch: enough for a product at full speed.
MOST_QUERIES = 1024
# [results] Most results of a batch; with a few candidates for each they take 100 MB at most.
MOST_RESULTS = 1 << 20
# [queries] Queries that justify a thread of their own. 39 000 rows on two threads, as one batch and
# as two: Zen 4, 1024 queries, k = 10 68 and 66, k = 100 107 and 103, k = 1000 544 and 374; 256
# queries, k = 10, 25 and 32. Zen 3, 1024 queries, k = 10, 100, 1000: 189 and 152, 289 and 207, 771
# and 575; 256 queries, k = 10, 48 and 56.
THREAD_QUERIES = 512
# [results] For k = 250 i, THREAD_QUERIES / i queries justify a thread. Zen 4, 256 queries,
# 12 000 rows, k = 1000: one batch 101, two 86.
MANY_RESULTS = 250
# [queries] From so many queries on, a corpus that is searched once is coded. Coding takes about
# 1 ns a number, and saves 0.01 ns for each query. 39 000 rows, with and without codes: Zen 3, 48
# queries 55 and 57, 96 queries 66 and 74; Zen 4 56 and 61, 68 and 96.
CODING_PAYS = 64
# [queries] Up to so many queries are multiplied in bfloat16 with the int8 codes.
FEW_QUERIES = 2
# [numbers] Most numbers of unit rows that are made at a time for a float product: 4 MB.
FLOAT_NUMBERS = 1 << 20

# ---- ranking all rows at once (nearest/ranked)

# [share] The part of the cost of a wanted row (`costs.pair`) that ranking all rows saves. Zen 5,
# 256 queries, ranked and scanned: 12 000 rows, k = 1000 50 and 62, k = 500 35 and 36, k = 300 29
# and 26; 39 000 rows, k = 1000 148 and 77.
RANKED_SPARES = 0.4
# [ns per score] To select candidates from float32 scores, beyond what a float screen takes (Zen 5).
RANKED_NS = 1.5
# [queries] Fewer queries are not ranked: making the unit rows takes as long as so many products.
RANKED_QUERIES = 16
# [scores] Size of the scores that are ranked together: 16 MB of float32.
RANKED_SCORES = 1 << 22
# [numbers] A larger corpus is not ranked: it is read again for each set of queries.
RANKED_NUMBERS = 1 << 24
# [rows] Rows multiplied at a time: 2 MB of scores for 256 queries.
RANKED_ROWS = 1 << 11
# [length] Rows are centred first where the longest centred row is shorter than this.
RANKED_RADIUS = 0.5

# ---- coding rows (screening/codes)

# [numbers] Numbers coded at a time, in 8 MB of scratch a thread. (200 000, 384) on Zen 4, on one
# and two threads: 202 and 121; half as many 219 and 134 (Python and its lock take longer); twice as
# many 224 and 157 (they leave the cache).
CODED_NUMBERS = 1 << 19
# [numbers] Most numbers being coded on all threads: 64 MB of scratch.
CODING_SCRATCH = 1 << 22

# ---- candidates (nearest/candidates)

# [steps] Most steps of the histogram that finds a threshold which k candidates of a query reach.
# Zen 5, 1024 queries, 39 000 rows: k = 10 with 1024, 512, 256, 128 steps took 59, 58, 57, 57;
# k = 100 took 89, 87, 85, 86.
COUNTED_STEPS = 256
# [numbers] Most numbers of the table in which candidates are sorted, beyond four a candidate.
WIDEST_TABLE = 1 << 20

# ---- projections for few queries (nearest/few_queries, screening/segment_projection)

# [numbers] A smaller segment gets no projection: the fixed cost of a call is as large as that of
# reading a quarter of so many codes.
FEW_NUMBERS = 1 << 23
# [searches] An index computes a projection after so many searches. Zen 5, one query of 200 000
# rows: by all codes 8.8, by a projection 3.8, to compute that 400; on two threads 5.6, 3.9, 320.
FEW_SEARCHES = 16
# [numbers] Widths of projections are multiples of this, as `FewQueriesScreen` requires.
FEW_STEP = 64
# [share] A projection is used if it is predicted to take at most this share of the time without.
FEW_WORTH = 2 / 3
# [ns per code] To read a code for one query. Zen 5: 77 million codes in 6.1 ms.
FEW_CODE_NS = 0.08
# [rows] Size of the sample from which the width of a projection is chosen.
FEW_SAMPLE = 4096
# [rows per result] Rows scored for the first threshold, times k.
FEW_FIRST = 4
# [rows] Rows scored for the first threshold, besides those.
FEW_FIRST_MORE = 32
# [searches] A projection is given up when it failed so many times more often than it helped.
FEW_LOST = 8

# ---- projections for joins (screening/projection)

# [share] A projection is used if it is predicted to take at most this share of the time of a
# product of all codes.
PROJECTION_WORTH = 0.8
# [pairs per d^2] A join of fewer pairs does not repay the eigenvectors of a d x d matrix.
PROJECTION_PAIRS = 512
# [numbers] Numbers of rows that are projected at a time: 1 MB.
PROJECTION_NUMBERS = 1 << 18
# [parts per thread] Parts into which products and rows are cut. Zen 5, two threads, on a quiet
# machine and beside one busy process: to choose a projection of 20 000 rows, and to project them: 1
# part 85 and 140, 38 and 69; 4 parts 87 and 139, 39 and 64; by torch's threads 78 and 340, 33 and
# 200.
PROJECTION_SHARE = 4

# ---- joins (joins/rounds, joins/dense)

# [pairs] Most pairs of a round: about 24 bytes each, and as much again while they are sorted.
ROUND_PAIRS = 1 << 21
# [queries] Most queries of a batch.
ROUND_BATCH = 1024
# [batches per thread] At least so many batches for each thread, while they have ROUND_BATCH_LEAST
# queries. Zen 5, two threads, on a quiet machine and beside one busy process: 5000 rows in batches
# of 1024 47 and 64, 512 45 and 61, 256 48 and 62, 128 66 and 80, batch by batch on torch's threads
# 52 and 117; 20 000 rows in batches of 1024 354 and 804, 512 381 and 844.
ROUND_SHARE = 2
# [queries] Fewest queries of a batch that is made smaller for the sake of ROUND_SHARE.
ROUND_BATCH_LEAST = 512
# [queries] Queries of the first round.
FIRST_ROUND = 1 << 11
# [queries] Most queries of a round.
LONGEST_ROUND = 1 << 14
# [numbers] Most numbers of the queries of a round.
ROUND_NUMBERS = 1 << 23
# [numbers] Numbers of rows that are multiplied in float64 at a time: 2 MB, which stay in cache.
DENSE_NUMBERS = 1 << 18

# ---- what a score costs beside its product (screening/costs)

# [ns per candidate] To keep, move and sort a candidate. Zen 4: 0.8 million in 120 ms (k = 1000).
CANDIDATE_NS = 100.0
# [ns per score] To read a score of a filtered product. Zen 4.
FILTERED_NS = 0.2
# [ns per score] To read a score of a float screen and form the maxima of groups. Zen 4.
FLOAT_SCORE_NS = 1.0
# [share] Of the rows that int8 lets through beyond those wanted, bfloat16, whose bound is half as
# wide, drops this share. Zen 5, int8 and bfloat16: 1024 queries, 39 000 rows, k = 100 95 and 163,
# k = 1000 419 and 430; 256 queries, 12 000 rows, k = 100 16 and 22, k = 1000 66 and 58.
BFLOAT16_SPARES = 0.3

# ---- a filter (selection) ----

# [queries] Comparing a row with so many takes as long as to gather and code it. Zen 5: 2.2 ns a
# number for codes, and 0.13 for one query that passes over rows in memory.
CODED_AS_QUERIES = 16
# [pairs] Of queries and the rows that they may find: up to so many are scored one by one; 4 ms.
SCORED_PAIRS = 1 << 12
# [pairs] Scored at once, with 40 bytes each.
SCORED_PAIRS_AT_ONCE = 1 << 20
