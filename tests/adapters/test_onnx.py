"""What both exporters write is run by onnxruntime, for inputs of other sizes than were exported."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.export import Dim

from cossim_fast import CosineSimilarity, _reference, pairwise_cosine
from cossim_fast.testing import assert_close, make_inputs
from old_torch import set_setting

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*(deprecated|legacy).*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch.onnx"),
]


class Broadcast(nn.Module):
    def forward(self, x, y):
        return CosineSimilarity(-1)(x[..., :, None, :], y[..., None, :, :])


class Matrix(nn.Module):
    def forward(self, x, y):
        return pairwise_cosine(x, y)


class Symmetric(nn.Module):
    def forward(self, x):
        return pairwise_cosine(x)


# A module, the shapes that it is exported at, and others that it then runs at.
CASES = {
    "rows": (CosineSimilarity(), [(5, 16), (5, 16)], [(7, 16), (7, 16)]),
    "broadcast": (Broadcast(), [(5, 16), (6, 16)], [(7, 16), (9, 16)]),
    "matrix": (Matrix(), [(5, 16), (6, 16)], [(7, 16), (1, 16)]),
    "batched": (Matrix(), [(2, 5, 16), (2, 6, 16)], [(3, 7, 16), (3, 9, 16)]),
    "symmetric": (Symmetric(), [(5, 16)], [(7, 16)]),
}


def exact(name, x, y=None):
    if name == "rows":
        return _reference.cosine_similarity(x, y)
    return _reference.pairwise_cosine(x, x if y is None else y)


def export(module, inputs, path, *, by_trace):
    module.eval()
    axes = {f"x{i}": dict.fromkeys(range(t.dim() - 1)) for i, t in enumerate(inputs)}
    if by_trace:
        named = {name: {a: f"{name}_{a}" for a in each} for name, each in axes.items()}
        torch.onnx.export(
            module, inputs, path, dynamo=False, input_names=list(axes), dynamic_axes=named
        )
        return
    shapes = tuple(dict.fromkeys(each, Dim.AUTO) for each in axes.values())
    torch.onnx.export(module, inputs, path, dynamo=True, dynamic_shapes=shapes, verbose=False)


def run(path, inputs):
    session = onnxruntime.InferenceSession(path)
    names = [given.name for given in session.get_inputs()]
    (result,) = session.run(None, dict(zip(names, (t.numpy() for t in inputs), strict=True)))
    return torch.from_numpy(np.asarray(result))


@pytest.mark.parametrize("setting", ["none", "bf16"])
@pytest.mark.parametrize("by_trace", [True, False], ids=["dynamo=False", "dynamo=True"])
@pytest.mark.parametrize("name", CASES)
def test_what_is_exported_runs_at_other_sizes(name, by_trace, setting, tmp_path):
    module, at, others = CASES[name]
    path = str(tmp_path / "cosine.onnx")
    set_setting("mkldnn", setting)
    try:
        export(module, tuple(make_inputs(*at)), path, by_trace=by_trace)
    finally:
        set_setting("mkldnn", "none")
    for shapes in (at, others):
        inputs = make_inputs(*shapes)
        assert_close(run(path, inputs), exact(name, *inputs), terms=64)
    casts = [node for node in onnx.load(path).graph.node if node.op_type == "Cast"]
    assert all(cast.attribute[0].i != onnx.TensorProto.DOUBLE for cast in casts)


def test_one_row_against_many_runs_as_rows_in_pairs(tmp_path):
    path = str(tmp_path / "cosine.onnx")
    export(CosineSimilarity(), tuple(make_inputs((1, 16), (5, 16))), path, by_trace=True)
    inputs = make_inputs((4, 16), (4, 16))
    assert_close(run(path, inputs), _reference.cosine_similarity(*inputs), terms=64)
