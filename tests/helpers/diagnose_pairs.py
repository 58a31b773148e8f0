"""Pairs whose cause is known."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import diagnose_networks as networks
from diagnose_inputs import Case, rand, randn, with_row, wordnet


def _same(x: Any) -> tuple[Any, Any]:
    return x, x


NAN = float("nan")


def _map(
    function: Callable[[Tensor], Tensor], *shape: int, bad: float | None = None
) -> tuple[Tensor, Tensor]:
    x = randn(*shape)
    if bad is not None:
        x = with_row(x, bad)
    return x, function(x)


def _two(function: Callable[[Tensor], Tensor], *shape: int) -> tuple[Tensor, Tensor]:
    return function(randn(*shape)), function(randn(*shape, seed=1))


def _refilled_buffer() -> tuple[Tensor, Tensor]:
    buffer = torch.empty(16, 64)
    before = buffer[:]
    buffer.copy_(randn(16, 64))
    return buffer, before


def _overlapping_slices() -> tuple[Tensor, Tensor]:
    x = randn(20, 8)
    return x[:12], x[8:]


def _frames(apart: int) -> tuple[Tensor, Tensor]:
    x = randn(20, 64)
    return x[: len(x) - apart], x[apart:]


def _windows() -> tuple[Tensor, Tensor]:
    windows = randn(80).unfold(0, 32, 1)
    return windows[:-1], windows[1:]


def _halves() -> tuple[Tensor, Tensor]:
    first, second = randn(32, 64).chunk(2)
    return first, second


def _interleaved() -> tuple[Tensor, Tensor]:
    x = randn(32, 64)
    return x[::2], x[1::2]


def _numpy_view() -> tuple[Any, Any]:
    array = np.random.default_rng(0).standard_normal((8, 16))
    return array, torch.from_numpy(array)


def _parameter_data() -> tuple[Any, Any]:
    parameter = torch.nn.Parameter(randn(8, 16))
    return parameter, parameter.data


def _untrained_batches() -> tuple[Tensor, Tensor]:
    features = networks.features(networks.vgg(), 128)
    return features[:64].clone(), features[64:].clone()


def _network_twice() -> tuple[Tensor, Tensor]:
    network = networks.vgg()
    return networks.features(network, 32), networks.features(network, 32)


def _small_angle() -> tuple[Tensor, Tensor]:
    x = randn(16, 64)
    return x.bfloat16(), (x + 0.02 * randn(16, 64, seed=2)).bfloat16()


def _half_negated() -> tuple[Tensor, Tensor]:
    x, y = randn(16, 64), randn(16, 64, seed=1)
    y[:8] = -x[:8]
    return x, y


def _noisy_views(x: Tensor) -> tuple[Tensor, Tensor]:
    return x + 0.1 * randn(*x.shape, seed=1).abs(), x + 0.1 * randn(*x.shape, seed=2).abs()


def _partly_equal(rows: int) -> tuple[Tensor, Tensor]:
    x, y = randn(5, 64), randn(5, 64, seed=1)
    y[:rows] = x[:rows]
    return x, y


def _reversed_view() -> tuple[Any, Any]:
    array = np.random.default_rng(0).standard_normal((8, 16))
    return array, array[::-1]


def _one_direction_many_lengths() -> tuple[Tensor, Tensor]:
    direction = randn(800)
    return direction * (rand(16, 1) + 0.1), direction * (rand(16, 1, seed=1) + 0.1)


PAIRS = (
    Case("two random batches", "none", lambda: _two(lambda x: x, 16, 64)),
    Case("(1, 2, 3) and (3, 2, 1)", "none", lambda: ([1, 2, 3], [3, 2, 1])),
    Case("two random vectors, float64", "none", lambda: _two(torch.Tensor.double, 300)),
    Case("two random batches, bfloat16", "none", lambda: _two(torch.Tensor.bfloat16, 16, 64)),
    Case("two random batches, float16", "none", lambda: _two(torch.Tensor.half, 16, 64)),
    Case(
        "noisy views of one batch",
        "none",
        lambda: _map(lambda x: x + 0.3 * randn(16, 64, seed=2), 16, 64),
    ),
    Case("rectified random batches", "none", lambda: _two(torch.relu, 16, 256)),
    Case("random integers", "none", lambda: _two(lambda x: (9 * x).int(), 16, 64)),
    Case("two halves of one batch", "none", _halves),
    Case("interleaved rows of one batch", "none", _interleaved),
    Case("overlapping slices", "none", _overlapping_slices),
    Case("adjacent frames of one tensor", "none", lambda: _frames(1)),
    Case("frames of one window, one number apart", "none", _windows),
    Case("an array and its view in reverse", "none", _reversed_view),
    Case("one vector and a batch", "none", lambda: (randn(64), randn(32, 64, seed=1))),
    Case("one row and a batch", "none", lambda: (randn(1, 64), randn(32, 64, seed=1))),
    Case("all pairs", "none", lambda: (randn(32, 64, 1), randn(1, 64, 32, seed=1))),
    Case(
        "the mean of the tokens, and tokens",
        "none",
        lambda: (randn(8, 64, 12).mean(2, keepdim=True), randn(8, 64, 12, seed=1)),
    ),
    Case("maps of one pixel", "none", lambda: _two(lambda x: x, 16, 512, 1, 1)),
    Case("not contiguous", "none", lambda: _two(lambda x: x.T, 64, 16)),
    Case(
        "real embeddings, different rows",
        "none",
        lambda: (wordnet()[:500].clone(), wordnet()[500:1000].clone()),
    ),
    Case("three axes", "none", lambda: _two(lambda x: x, 2, 5, 32)),
    Case("random, two features", "none", lambda: _two(lambda x: x, 50, 2)),
    Case("rows in another order", "none", lambda: _map(lambda x: x.flip(0), 16, 64)),
    Case("half of the rows negated", "none", _half_negated),
    Case("nearly a multiple, of three features", "none", lambda: ([1.0, 2, 3], [2, 4, 6.0001])),
    Case("noisy views of one positive vector", "none", lambda: _noisy_views(rand(64))),
    Case("two rows in five are equal", "none", lambda: _partly_equal(2)),
    Case(
        "NaN in one row",
        "non_finite",
        lambda: (with_row(randn(16, 64), float("nan")), randn(16, 64, seed=1)),
    ),
    Case(
        "infinity in one element",
        "non_finite",
        lambda: (randn(64), F.pad(randn(63), (1, 0), value=float("inf"))),
    ),
    Case("float16 overflow", "non_finite", lambda: _two(lambda x: (1e6 * x).half(), 16, 64)),
    Case("all zeros", "zero_rows", lambda: (torch.zeros(4, 8), randn(4, 8))),
    Case(
        "one zero row of many",
        "zero_rows",
        lambda: (with_row(randn(16, 64), 0.0), randn(16, 64, seed=1)),
    ),
    Case("a dead ReLU layer", "zero_rows", lambda: _two(lambda x: torch.relu(x - 100), 16, 64)),
    Case("rows under eps", "zero_rows", lambda: _two(lambda x: 1e-12 * x, 16, 64)),
    Case(
        "a column and a vector",
        "broadcast",
        lambda: (randn(64, 1).abs(), randn(64, seed=1).abs()),
    ),
    Case("a column of both signs and a vector", "broadcast", lambda: (randn(64, 1), randn(64))),
    Case("a vector and a column of itself", "broadcast", lambda: _map(lambda x: x[:, None], 64)),
    Case("a number and a vector", "broadcast", lambda: (torch.tensor(2.0), randn(8))),
    Case(
        "a mean over the features, and tokens",
        "broadcast",
        lambda: (randn(8, 64, 12).mean(1, keepdim=True), randn(8, 64, 12, seed=1)),
    ),
    Case("an axis too many", "broadcast", lambda: (randn(32, 1, 64), randn(32, 64, seed=1))),
    Case("vector2 = vector1", "same_object", lambda: _same(randn(16, 800))),
    Case("one array", "same_object", lambda: _same(np.ones((3, 4)))),
    Case("a batch and all of its rows, by a slice", "shared_storage", lambda: _frames(0)),
    Case("detach()", "shared_storage", lambda: _map(torch.Tensor.detach, 16, 64)),
    Case(
        "view and back", "shared_storage", lambda: _map(lambda x: x.view(-1).view(16, 64), 16, 64)
    ),
    Case("expand()", "shared_storage", lambda: _map(lambda x: x[:1].expand(16, 64), 16, 64)),
    Case("a parameter and its .data", "shared_storage", _parameter_data),
    Case("a buffer that is refilled", "shared_storage", _refilled_buffer),
    Case("an array and torch.from_numpy of it", "shared_storage", _numpy_view),
    Case("a matrix and its transpose", "shared_storage", lambda: _map(lambda x: x.T, 16, 16)),
    Case("three rows in five are equal", "equal_values", lambda: _partly_equal(3)),
    Case("clone()", "equal_values", lambda: _map(torch.Tensor.clone, 16, 64)),
    Case("float32 and its float16", "equal_values", lambda: _map(torch.Tensor.half, 16, 64)),
    Case("one network, one batch, twice", "equal_values", _network_twice),
    Case(
        "clamped to one value",
        "equal_values",
        lambda: _two(lambda x: (1e6 * x.abs() + 1e6).clamp(max=65504).half(), 16, 64),
    ),
    Case("clone(), one row zero", "equal_values", lambda: _map(torch.clone, 64, 64, bad=0.0)),
    Case("clone(), one row NaN", "equal_values", lambda: _map(torch.clone, 64, 64, bad=NAN)),
    Case(
        "one row zero, others multiples",
        "positive_multiple",
        lambda: _map(lambda x: 3 * x, 64, 64, bad=0.0),
    ),
    Case(
        "random + 10, one row NaN",
        "common_offset",
        lambda: (with_row(randn(16, 64) + 10, NAN), randn(16, 64, seed=1) + 10),
    ),
    Case(
        "a vector with itself, one row zero",
        "same_object",
        lambda: _same(with_row(randn(9, 8), 0.0)),
    ),
    Case("(1, 2, 3) and (2, 4, 6)", "positive_multiple", lambda: ([1, 2, 3], [2, 4, 6])),
    Case(
        "another factor for each row",
        "positive_multiple",
        lambda: _map(lambda x: x * (rand(16, 1) + 0.1), 16, 64),
    ),
    Case("normalised on one side", "positive_multiple", lambda: _map(F.normalize, 16, 64)),
    Case(
        "normalised on one side, bfloat16",
        "positive_multiple",
        lambda: _map(lambda x: F.normalize(x).bfloat16(), 16, 64),
    ),
    Case(
        "a tenth, in float64",
        "positive_multiple",
        lambda: _map(lambda x: (0.1 * x).double(), 16, 64),
    ),
    Case("one direction, many lengths", "positive_multiple", _one_direction_many_lengths),
    Case("negated", "opposite", lambda: _map(torch.neg, 16, 64)),
    Case(
        "a negative multiple, float16",
        "opposite",
        lambda: _map(lambda x: (-0.3 * x).half(), 16, 64),
    ),
    Case("random + 10", "common_offset", lambda: _two(lambda x: x + 10, 16, 64)),
    Case("uniform in [0, 1)", "common_offset", lambda: (rand(16, 64), rand(16, 64, seed=1))),
    Case("two vectors with one large mean", "common_offset", lambda: _two(lambda x: x + 30, 200)),
    Case(
        "one direction and small noise",
        "common_offset",
        lambda: _two(lambda x: randn(64, seed=9) + 0.01 * x, 16, 64),
    ),
    Case(
        "1000 + random in bfloat16",
        "common_offset",
        lambda: _two(lambda x: (1000 + x).bfloat16(), 16, 64),
    ),
    Case("batches through an untrained VGG", "common_offset", _untrained_batches),
    Case("random, through a sigmoid", "common_offset", lambda: _two(torch.sigmoid, 16, 64)),
    Case(
        "real embeddings + 10",
        "common_offset",
        lambda: (wordnet()[:50] + 10, wordnet()[50:100] + 10),
    ),
    Case(
        "one direction and small noise, float16",
        "common_offset",
        lambda: _two(lambda x: (randn(64, seed=9) + 0.01 * x).half(), 16, 64),
    ),
    Case("one feature", "single_feature", lambda: (rand(8, 1), rand(8, 1, seed=1))),
    Case("the wrong dim", "single_feature", lambda: (randn(1, 800).T, randn(1, 800, seed=1).T)),
    Case("two numbers", "single_feature", lambda: (torch.tensor(2.0), torch.tensor(4.0))),
    Case("a small angle in bfloat16", "low_precision", _small_angle),
    Case(
        "a small angle in float32",
        "low_precision",
        lambda: _map(lambda x: x + 1e-4 * randn(16, 64, seed=2), 16, 64),
    ),
    Case(
        "a small angle in float64",
        "low_precision",
        lambda: _two(lambda x: randn(16, 64, seed=2).double() + 1e-9 * x, 16, 64),
    ),
    Case(
        "squares that overflow float16",
        "low_precision",
        lambda: _two(lambda x: (1e4 * x).half(), 16, 64),
    ),
    Case(
        "squares that overflow float32", "low_precision", lambda: _two(lambda x: 1e25 * x, 16, 64)
    ),
)
