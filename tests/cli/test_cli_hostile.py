"""Commands on files of every kind of tensor and array: a result, or status 2 and one line."""

import warnings

import numpy as np
import pytest
import torch

from cli_run import run
from hostile_values import FLOAT_TENSORS, KINDS, dense, made

# torch.load leaves classes of others alone.
READ = {*FLOAT_TENSORS, "array", "float64 array", "float16 array", "other byte order"} - {
    "subclass"
}


def written(kind, folder):
    """A file that holds rows of a kind; None where neither torch nor numpy writes it."""
    rows = made(kind)
    try:
        if isinstance(rows, torch.Tensor):
            torch.save(rows.detach(), folder / "rows.pt")
            return folder / "rows.pt"
        if type(rows) is np.ndarray:
            np.save(folder / "rows.npy", rows)
            return folder / "rows.npy"
    except (RuntimeError, TypeError, NotImplementedError, AttributeError):
        pass
    return None


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_read_or_refused_in_one_line(kind, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = written(kind, tmp_path)
        if path is None:
            assert kind not in READ or kind in ("zeros of torch's", "parameter")
            return
        good, built = tmp_path / "good.npy", tmp_path / "index"
        np.save(good, dense(1).numpy())
        commands = [
            ["topk", path, good, "-k", 2],
            ["topk", good, path, "-k", 2],
            ["pairs", path, "--threshold", 0.5],
            ["dedup", path, "--threshold", 0.5],
            ["index", "build", path, "-o", built],
            ["index", "build", good, "--ids", path, "-o", built],
            ["diagnose", path],
        ]
        for command in commands:
            built.unlink(missing_ok=True)
            status, out, err = run(*command)
            assert "Traceback" not in err
            if status == 2:
                assert err.count("\n") == 1, err
                assert not out
                assert kind not in READ or "--ids" in command, err
            else:
                assert status == 0 or (status == 1 and command[0] == "diagnose"), err
