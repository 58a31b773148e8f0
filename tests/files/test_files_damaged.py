"""Flipped bits and truncations of every format: refused, or exactly what was saved.

Formats without checksums cannot show a changed number; there the rest of the file is damaged.
"""

import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from cossim_fast import files

# Larger than what zipfile reads, and sums, to see what a member is.
X = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
Y = X[0].clone()
FLIPS, CUTS = 300, 60


def _parquet(path, **options):
    column = pa.FixedSizeListArray.from_arrays(pa.array(X.reshape(-1).numpy()), 8)
    pq.write_table(pa.table({"id": list(range(300)), "v": column}), path, **options)


SUMMED = {
    "stored.npz": lambda path: np.savez(path, x=X.numpy(), y=Y.numpy()),
    "packed.npz": lambda path: np.savez_compressed(path, x=X.numpy(), y=Y.numpy()),
    "one.pt": lambda path: torch.save(X, path),
    "dict.pt": lambda path: torch.save({"x": X, "y": Y, "same shape": Y + 1}, path),
    "summed.parquet": lambda path: _parquet(path, write_page_checksum=True),
}
UNSUMMED = {
    "x.npy": lambda path: np.save(path, X.numpy()),
    "x.safetensors": lambda path: safetensors.torch.save_file({"x": X, "y": Y}, path),
    "plain.parquet": lambda path: _parquet(path, compression="none", use_dictionary=False),
    "old.pt": lambda path: torch.save(X, path, _use_new_zipfile_serialization=False),
}
# A byte that says how numbers are laid out, and that nothing checks: the order of their bytes, and
# their count in a file of torch's old format, of which a tensor may use a part.
UNSEEN = {"x.npy": b"<f4", "old.pt": b"K\x00M\x2c\x01K\x08\x86"}


def written(path, writers):
    writers[path.name](path)
    return path.read_bytes()


def outcome(path, content):
    """Whether damaged content was refused; if not, it is what was saved, or the test fails."""
    path.write_bytes(content)
    try:
        loaded = files.load(path)
    except (files.BadFileError, files.NotEnoughMemoryError):
        return "refused"
    array = np.asarray(loaded)
    assert array.dtype == np.float32
    assert array.shape == X.shape
    return "the same" if array.tobytes() == X.numpy().tobytes() else "changed"


def flipped(content, chance, places):
    damaged = bytearray(content)
    damaged[chance.choice(places)] ^= 1 << chance.randrange(8)
    return bytes(damaged)


@pytest.mark.parametrize("name", SUMMED)
def test_flips_are_refused_or_change_nothing(name, tmp_path):
    path, chance = tmp_path / name, random.Random(3)
    whole = written(path, SUMMED)
    found = [outcome(path, flipped(whole, chance, range(len(whole)))) for _ in range(FLIPS)]
    assert "changed" not in found
    assert found.count("refused") > FLIPS // 4


@pytest.mark.parametrize("name", sorted(SUMMED.keys() - {"packed.npz"}))
def test_a_flip_of_any_number_is_refused(name, tmp_path):
    path, chance = tmp_path / name, random.Random(4)
    whole = written(path, SUMMED)
    numbers = whole.find(X.numpy().tobytes())
    if numbers < 0:  # a .parquet keeps them in its dictionary, after each other but for a few
        numbers = whole.index(X.numpy().tobytes()[:4])
    for _ in range(FLIPS):
        damaged = bytearray(whole)
        damaged[numbers + chance.randrange(X.numel() * 4)] ^= 1 << chance.randrange(8)
        assert outcome(path, bytes(damaged)) == "refused"


@pytest.mark.parametrize("name", UNSUMMED)
def test_flips_beside_numbers_are_refused_or_change_nothing(name, tmp_path):
    path, chance = tmp_path / name, random.Random(5)
    whole = written(path, UNSUMMED)
    numbers = whole.index(X.numpy().tobytes())
    places = {*range(len(whole))} - {*range(numbers, numbers + X.numel() * 4)}
    if name in UNSEEN:
        place = whole.index(UNSEEN[name])
        places -= {*range(place, place + len(UNSEEN[name]))}
    found = [outcome(path, flipped(whole, chance, sorted(places))) for _ in range(FLIPS)]
    assert "changed" not in found
    assert found.count("refused") > FLIPS // 10


@pytest.mark.parametrize("name", [*SUMMED, *UNSUMMED])
def test_truncations_are_refused(name, tmp_path):
    path, chance = tmp_path / name, random.Random(6)
    whole = written(path, {**SUMMED, **UNSUMMED})
    for _ in range(CUTS):
        assert outcome(path, whole[: chance.randrange(len(whole))]) == "refused"


@pytest.mark.parametrize("name", ["x.npy", "x.safetensors"])
def test_trailing_bytes_are_refused(name, tmp_path):
    path = tmp_path / name
    assert outcome(path, written(path, UNSUMMED) + b"\0" * 8) == "refused"


@pytest.mark.parametrize("name", ["stored.npz", "one.pt", "dict.pt"])
def test_checksums_are_left_alone_on_request(name, tmp_path):
    path = tmp_path / name
    whole = bytearray(written(path, SUMMED))
    whole[whole.index(X.numpy().tobytes()) + 3] ^= 1
    path.write_bytes(whole)
    with pytest.raises(files.BadFileError, match=r"checksum of .* does not fit"):
        files.load(path)
    loaded = np.asarray(files.load(path, verify=False))
    assert (loaded != X.numpy()).sum() == 1


@pytest.mark.parametrize("key", ["x", None])
def test_a_wrong_checksum_beside_what_is_read_does_not_matter(key, tmp_path):
    path = tmp_path / "stored.npz"
    whole = bytearray(written(path, SUMMED))
    whole[whole.rindex(Y.numpy().tobytes())] ^= 1
    path.write_bytes(whole)
    np.testing.assert_array_equal(files.load(path, key=key), X)
    with pytest.raises(files.BadFileError, match="checksum"):
        files.load(path, key="y")


def test_torch_writes_files_without_checksums(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(X, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(files.load(tmp_path / "x.pt"), X)


def test_pt_of_the_other_byte_order_is_summed_in_the_file(tmp_path):
    path = tmp_path / "x.pt"
    big = torch.from_numpy(X.numpy().byteswap())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.byteorder", "big")
        torch.save(big, path)
    assert b"big" in path.read_bytes()
    assert torch.equal(files.load(path), X)
    whole = bytearray(path.read_bytes())
    whole[whole.index(big.numpy().tobytes()) + 3] ^= 1
    path.write_bytes(whole)
    with pytest.raises(files.BadFileError, match="checksum"):
        files.load(path)
