"""`--plan`, and what `--ray` refuses: no cluster is needed."""

import numpy as np
import pytest

import cossim_fast.cli.cluster
from cli_run import run
from cossim_fast.cli.cluster import _given

pytest.importorskip("pyarrow")


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).standard_normal((100, 8)).astype(np.float32)
    np.save("x.npy", x)
    return tmp_path


@pytest.mark.usefixtures("files")
def test_a_plan_is_shown_and_nothing_is_done(files):
    status, out, err = run("topk", "x.npy", "*.npy", "-k", "3", "--plan", "--rows-per-task", "30")
    assert (status, err) == (0, "")
    head, search, merge, every, rate = out.splitlines()
    assert head.split()[:3] == ["stage", "tasks", "read"]
    assert search.split()[:2] == ["search", "4"]
    assert merge.split()[:2] == ["merge", "1"]
    assert every.split()[:2] == ["all", "5"]
    assert rate == "at 400 G operations a second and core"
    for command in ("pairs", "dedup"):
        status, out, err = run(command, "x.npy", "--plan")
        assert (status, err) == (0, "")
        assert "join" in out
    assert [path.name for path in files.iterdir()] == ["x.npy"]


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["topk", "x.npy", "x.npy", "--ray", "local"], "expected -o FOLDER with --ray"),
        (["pairs", "x.npy", "--plan", "--texts", "t"], "expected no --texts with --ray and --plan"),
        (["dedup", "x.npy", "--plan", "--skip-nan"], "expected no --skip-nan with --ray"),
        (["dedup", "x.npy", "--id-column", "id"], "expected --ray with --id-column"),
        (["topk", "x.npy", "x.npy", "--rows-per-task", "9"], "expected --ray with --rows-per-task"),
        (["topk", "x.npy", "x.npy", "-k", "101", "--plan"], "expected k <= n, got k = 101"),
        (["topk", "x.npy", "none/*.npy", "--plan"], "expected files ending in"),
        (["dedup", "x.npy", "--keep", "longest", "--plan"], "'first', 'last' or 'column:NAME'"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments, said):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) == 1


@pytest.mark.usefixtures("files")
def test_a_cluster_that_does_not_answer_is_named():
    pytest.importorskip("ray")
    status, out, err = run("pairs", "x.npy", "--ray", "127.0.0.1:1", "-o", "out")
    assert (status, out) == (2, "")
    assert "expected a Ray cluster at address='127.0.0.1:1', and none answers" in err
    assert len(err.splitlines()) == 1


def test_without_ray_the_extra_is_named(files, monkeypatch):
    def missing(*arguments, **options):
        raise ModuleNotFoundError("pip install 'cossim_fast[distributed]'")

    monkeypatch.setattr(cossim_fast.distributed.ray_engine, "require", missing)
    status, _, err = run("pairs", "x.npy", "--ray", "local", "-o", "out")
    assert status == 2
    assert "pip install 'cossim_fast[distributed]'" in err
    assert not (files / "out").exists()


@pytest.mark.parametrize(
    "path", ["s3://bucket/a/*.parquet", "gs://b", "memory://x/y.npy", "/a/b", "c:/d", "a/b.npy"]
)
def test_addresses_of_files_keep_their_slashes(path):
    from pathlib import Path

    assert _given(Path(path)) == path
