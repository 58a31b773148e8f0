"""Slow models of what processors do with sums, in the place of the operators that multiply.

Each is worked out in whole numbers or float64, to the bit of what the hardware does, so that every
machine tests the screens on every kind of arithmetic.
"""

import functools

import pytest
import torch

from cossim_fast.retrieval.screening import arithmetic, operators, rates, screens


def pack(codes):
    """As they are."""
    assert codes.is_contiguous()
    return codes.clone()


def exact_sums(rows, codes):
    """Sums (n, w) in float64, which holds them exactly."""
    return rows.double() @ codes.double().mT


def saturating_sums(rows, codes):
    """Products of adjacent codes are added in 16 bits that saturate (vpmaddubsw), pairs in 32."""
    padding = rows.shape[1] % 2
    rows, codes = (torch.nn.functional.pad(x, (0, padding)).int().mT for x in (rows, codes))
    total = torch.zeros((rows.shape[1], codes.shape[1]), dtype=torch.int32)
    for k in range(0, len(rows), 2):
        pair = torch.outer(rows[k], codes[k]).addr_(rows[k + 1], codes[k + 1])
        total += pair.clamp_(-(2**15), 2**15 - 1)
    return total.double()


def as_result(values, scale, offset, dtype):
    """Float32 operations: the scale, the offset, and rounding to the nearest, ties to even."""
    found = values * scale
    if offset is not None:
        found = found + offset
    return found if dtype == torch.float32 else found.round_().clamp_(0, 255).to(dtype)


def subtracting_first(sums):
    """The product of a processor that takes the zero point's part away in whole numbers."""

    def linear(rows, zero, packed, scale, offset, dtype):
        wanted = sums(rows, packed) - zero * packed.double().sum(1)
        return as_result(wanted.float(), scale, offset, dtype)

    return linear


def rounding(rows, zero, packed, scale, offset, dtype):
    """AMX under oneDNN 3.12: the sum of unsigned codes turns float32 first."""
    part = (zero * packed.double().sum(1)).float()
    return as_result(exact_sums(rows, packed).float() - part, scale, offset, dtype)


def truncated(x):
    """Float64 rounded to float32 towards 0."""
    near = x.float()
    return torch.where(near.double().abs() > x.abs(), near.nextafter(torch.zeros_like(near)), near)


def truncated_sums(rows, queries):
    """Sums (n, q) in float32, one product after another, truncated at each addition."""
    rows, queries = rows.double().mT, queries.double().mT
    total = torch.zeros((rows.shape[1], queries.shape[1]))
    for row, query in zip(rows, queries, strict=True):
        total = truncated(torch.outer(row, query).add_(total))
    return total


def bfloat16(rows, queries, out):
    """Sums that are truncated, rounded to bfloat16 at the end."""
    out.copy_(truncated_sums(rows, queries))


def mixed(queries, codes):
    """The same of codes."""
    return truncated_sums(queries, codes).bfloat16()


LINEAR = {
    "exact": subtracting_first(exact_sums),
    "rounding": rounding,
    "saturating": subtracting_first(saturating_sums),
}
# What the self-check is to make of each.
LIMITS = {"exact": 254, "rounding": 254, "saturating": 128}
CACHES = (
    arithmetic.found,
    rates.int8,
    rates.bfloat16,
    rates.mixed,
    rates.float32,
    screens._few_queries_work,
    screens._bfloat16_pays,
)


def forget():
    """What was found out and measured of this process."""
    for cache in CACHES:
        cache.cache_clear()


def use_linear(monkeypatch, linear):
    """Put a model of the int8 product in its place."""
    monkeypatch.setattr(operators, "linear", linear)
    monkeypatch.setattr(operators, "pack", pack)


@functools.cache
def found_of(name):
    """What the self-check finds of a model."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_linear(monkeypatch, LINEAR[name])
        return arithmetic._check()


@functools.cache
def own():
    """What it finds of this processor."""
    return arithmetic.found.__wrapped__()


# Every kind, and what this processor does, if that is of use.
PROCESSORS = [*LINEAR, *(["this one"] if own().adjacent_code_limit else [])]
every_processor = pytest.mark.parametrize("processor", PROCESSORS, indirect=True)


def limit():
    """What two adjacent codes of a query may add up to here."""
    return arithmetic.found().adjacent_code_limit


def become(monkeypatch, name):
    """Multiply as a processor of that kind does, and take its screens to be fast."""
    if name == "this one":
        monkeypatch.setattr(arithmetic, "found", own)
    else:
        use_linear(monkeypatch, LINEAR[name])
        monkeypatch.setattr(arithmetic, "found", lambda: found_of(name))
        monkeypatch.setattr(operators, "mixed", mixed)
        monkeypatch.setattr(operators, "bfloat16", bfloat16)
        monkeypatch.setattr(screens, "_bfloat16_pays", lambda: True)
        monkeypatch.setattr(screens, "_few_queries_work", lambda: True)
        monkeypatch.setattr(rates, "bfloat16", lambda: rates.Rate(100.0, 2.0))
    monkeypatch.setattr(rates, "int8", lambda: rates.Rate(200.0, 4.0))
