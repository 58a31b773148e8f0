"""Tensors, arrays and other values of every kind that somebody may pass for rows of numbers."""

import warnings

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.masked import masked_tensor

N, D = 6, 4


class Subclass(Tensor):
    """A tensor with a name of its own, and nothing else."""


def dense(seed=0, n=N, d=D):
    """Rows that are whole numbers at most 7 from 0, and so the same in every dtype."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 8, (n, d), generator=generator).float() + torch.eye(n, d)


def _compressed(x, layout):
    block = (2, 2) if layout in (torch.sparse_bsr, torch.sparse_bsc) else None
    return x.to_sparse(layout=layout, blocksize=block)


def _freed(x):
    x = x.clone()
    x.untyped_storage().resize_(0)
    return x


def _escaped(x):
    held = []
    torch.vmap(lambda row: (held.append(row), row * 2)[1])(x)
    return held[0]


def _inference(x):
    with torch.inference_mode():
        return x.clone()


def _imaginary(x):
    """A view whose memory holds the numbers with the other sign."""
    return torch.complex(torch.zeros_like(x), -x).conj().imag


def _unaligned(a):
    held = np.frombuffer(bytearray(a.nbytes + 1), a.dtype, a.size, offset=1).reshape(a.shape)
    held[:] = a
    return held


def _read_only(a):
    a.flags.writeable = False
    return a


def _field(a):
    """A field of records whose size is no multiple of a number's."""
    held = np.zeros(len(a), [("rows", a.dtype, a.shape[1:]), ("flag", "i1")])
    held["rows"] = a
    return held["rows"]


FLOAT8 = [name for name in dir(torch) if name.startswith("float8_e") and "e8m0" not in name]
# Tensors with the numbers of `dense`, in memory.
FLOAT_TENSORS = {
    "float16": Tensor.half,
    "bfloat16": Tensor.bfloat16,
    "float64": Tensor.double,
    "gradient": lambda x: x.requires_grad_(),
    "parameter": torch.nn.Parameter,
    "inference": _inference,
    "transposed": lambda x: x.mT.contiguous().mT,
    "expanded": lambda x: x[:1].expand(N, D),
    "negated": _imaginary,
    "zeros of torch's": lambda x: torch._efficientzerotensor(tuple(x.shape)),
    "subclass": lambda x: x.as_subclass(Subclass),
}
WHOLE_TENSORS = {
    name: (lambda x, name=name: x.to(getattr(torch, name)))
    for name in ("bool", "uint8", "int8", "int16", "int32", "int64")
}
UNSIGNED_TENSORS = {
    name: (lambda x, name=name: x.to(getattr(torch, name)))
    for name in ("uint16", "uint32", "uint64")
}
FLOAT8_TENSORS = {name: (lambda x, name=name: x.to(getattr(torch, name))) for name in FLOAT8}
COO = {"sparse COO": Tensor.to_sparse}
# Numbers that lie elsewhere, or are no numbers of one row each.
OTHER_TENSORS = {
    **{
        str(layout)[6:]: (lambda x, layout=layout: _compressed(x, layout))
        for layout in (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
    },
    "mkldnn": Tensor.to_mkldnn,
    "quantized": lambda x: torch.quantize_per_tensor(x, 0.5, 0, torch.quint8),
    "quantized, int32": lambda x: torch.quantize_per_tensor(x, 0.5, 0, torch.qint32),
    "quantized by channel": lambda x: torch.quantize_per_channel(
        x, torch.full((N,), 0.5).double(), torch.zeros(N).long(), 0, torch.qint8
    ),
    "nested": lambda x: torch.nested.nested_tensor([x[:2], x[2:]]),
    "jagged": lambda x: torch.nested.nested_tensor([x[:2], x[2:]], layout=torch.jagged),
    "masked tensor": lambda x: masked_tensor(x, x > 3),
    "fake": lambda x: FakeTensorMode().from_tensor(x),
    "freed": _freed,
    "complex64": Tensor.cfloat,
    "complex32": lambda x: x.to(torch.complex32),
    "conjugated": lambda x: x.cfloat().conj(),
    "meta": lambda x: x.to("meta"),
    "escaped": _escaped,
}
FUNCTIONAL = {"functional": torch._to_functional_tensor}
FLOAT_ARRAYS = {
    "array": lambda a: a,
    "float64 array": lambda a: a.astype(np.float64),
    "float16 array": lambda a: a.astype(np.float16),
    "reversed": lambda a: a[::-1],
    "columns reversed": lambda a: a[:, ::-1],
    "other byte order": lambda a: a.astype(a.dtype.newbyteorder()),
    "read-only": _read_only,
    "unaligned": _unaligned,
    "field of records": _field,
    "expanded array": lambda a: np.broadcast_to(a[:1], a.shape),
    "recarray": np.rec.array,
    "nothing masked": np.ma.masked_array,
    "list": lambda a: a.astype(float).tolist(),
    "tuple of arrays": tuple,
    "list of tensors": lambda a: list(torch.from_numpy(a)),
}
MATRIX = {"numpy matrix": np.matrix}
WHOLE_ARRAYS = {
    "bool array": lambda a: a > 0,
    "int64 array": lambda a: a.astype(np.int64),
    "list of ints": lambda a: a.astype(int).tolist(),
}
UNSIGNED_ARRAYS = {"uint16 array": lambda a: a.astype(np.uint16)}
# What scikit-learn makes float64 of.
TEXT_ARRAYS = {
    "numbers as objects": lambda a: a.astype(object),
    "numbers as text": lambda a: a.astype(str),
    "numbers as bytes": lambda a: a.astype("S"),
    "durations": lambda a: a.astype("m8[s]"),
    "times": lambda a: a.astype("M8[s]"),
    "longdouble": lambda a: a.astype(np.longdouble),
}
OTHER_ARRAYS = {
    "masked array": lambda a: np.ma.masked_array(a, a > 3),
    "list of masked arrays": lambda a: list(np.ma.masked_array(a, a > 3)),
    "objects": lambda a: np.full(a.shape, None),
    "records": lambda a: np.array([tuple(row) for row in a], [(name, "f4") for name in "abcd"]),
    "void": lambda a: a.view("V4"),
    "complex array": lambda a: a.astype(np.complex64),
    "clongdouble": lambda a: a.astype(np.clongdouble),
    "0-d array": lambda a: np.array(1.0),
    "ragged": lambda a: [[1.0, 2.0], [1.0]],
    "text": lambda a: "rows",
    "bytes": lambda a: b"rows",
    "None in a list": lambda a: [[None] * D] * N,
    "mapping": lambda a: {"rows": a},
    "set": lambda a: {1.0, 2.0},
    "function": lambda a: len,
    "module": lambda a: torch.nn.Linear(D, D),
    "generator": lambda a: (row for row in a),
}
TENSORS = {
    **FLOAT_TENSORS, **WHOLE_TENSORS, **UNSIGNED_TENSORS, **FLOAT8_TENSORS, **COO,
    **OTHER_TENSORS, **FUNCTIONAL,
}  # fmt: skip
ARRAYS = {
    **FLOAT_ARRAYS, **MATRIX, **WHOLE_ARRAYS, **UNSIGNED_ARRAYS, **TEXT_ARRAYS, **OTHER_ARRAYS
}  # fmt: skip
KINDS = (*TENSORS, *ARRAYS)


def made(kind, seed=0):
    """Rows of a kind."""
    with warnings.catch_warnings():
        # torch says that sparse, nested, masked and quantized tensors may change.
        warnings.simplefilter("ignore")
        if kind in TENSORS:
            return TENSORS[kind](dense(seed))
        return ARRAYS[kind](dense(seed).numpy())


def in_float64(kind, seed=0):
    """The same numbers as a plain float64 tensor."""
    x = dense(seed)
    if kind in ("expanded", "expanded array"):
        x = x[:1].expand(N, D)
    if kind == "0-d array":
        x = torch.ones(1, 1).expand(N, D)
    if kind == "zeros of torch's":
        x = torch.zeros_like(x)
    if kind in ("bool", "bool array"):
        x = (x > 0).float()
    if kind in FLOAT8_TENSORS:
        x = x.to(getattr(torch, kind))
    if kind == "reversed":
        x = x.flip(0)
    if kind == "columns reversed":
        x = x.flip(1)
    return x.detach().double()
