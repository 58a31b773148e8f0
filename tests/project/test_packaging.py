"""What is built and shipped, and what importing it needs."""

import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the sdist, the wheel built from the unpacked sdist as `build` does."""
    target = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-P", "-m", "build", "--outdir", str(target), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (sdist,) = target.glob("*.whl"), target.glob("*.tar.gz")
    return wheel, sdist


def test_the_wheel_holds_one_top_level_name(built):
    names = zipfile.ZipFile(built[0]).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"cossim_fast"}


def test_the_wheel_holds_every_module_kernels_and_the_typing_marker(built):
    names = set(zipfile.ZipFile(built[0]).namelist())
    sources = {p.relative_to(ROOT) for p in (ROOT / "cossim_fast").rglob("*.py")}
    expected = {str(p) for p in sources}
    expected |= {f"cossim_fast/{p.relative_to(ROOT)}" for p in (ROOT / "kernels").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == expected
    assert "cossim_fast/py.typed" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_sdist_holds_what_building_needs(built):
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"setup.py", "pyproject.toml", "README.md", "LICENSE", "kernels/__init__.py"}
    needed |= {"cossim_fast/__init__.py", "cossim_fast/py.typed"}
    assert needed <= names


def needed_by(*names):
    """The distributions with these names and all that they need, without extras."""
    found = {}
    waiting = list(names)
    while waiting:
        name = re.match(r"[\w.-]+", waiting.pop())[0]
        if name.lower() in found:
            continue
        try:
            found[name.lower()] = distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # for another platform
        waiting += [need for need in distribution.requires or () if "extra ==" not in need]
    return found


def link_into(folder, distributions):
    """Let `folder` hold these distributions and nothing else of this environment."""
    folder.mkdir()
    for distribution in distributions.values():
        for top in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(distribution.locate_file(top))


USE = """
import cossim_fast, torch
x = torch.tensor([[3.0, 4.0]])
assert cossim_fast.cosine_similarity(x, x).item() == 1
assert cossim_fast.pairwise_cosine(x).shape == (1, 1)
assert torch.ops.cossim_fast.rowwise_fwd(x, x, 1e-8).item() == 1
import cossim_fast.testing, cossim_fast.kernels
from importlib.util import find_spec
absent = ("triton", "matplotlib", "sklearn", "scipy", "hypothesis", "pytest")
assert not [name for name in absent if find_spec(name)]
print(cossim_fast.__file__)
"""


def test_an_installed_wheel_needs_torch_and_numpy_alone(built, tmp_path):
    home = tmp_path / "empty"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    site = next((home / "lib").glob("python*/site-packages"))
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, "--target", str(site), str(built[0])], check=True)
    # --target puts the command's script into bin/ beside the packages.
    installed = {p.name for p in site.iterdir() if not p.name.endswith(".dist-info")}
    assert installed - {"bin"} == {"cossim_fast"}
    link_into(tmp_path / "needed", needed_by("torch", "numpy"))
    (site / "torch-and-numpy.pth").write_text(str(tmp_path / "needed"))
    command = [str(python), "-P", "-W", "ignore", "-c", USE]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(home)


def test_the_version_is_that_of_the_package(built):
    import cossim_fast

    assert built[0].name.startswith(f"cossim_fast-{cossim_fast.__version__}-")
