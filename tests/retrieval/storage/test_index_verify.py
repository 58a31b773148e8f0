"""Vectors that stay in a file: compared with their checksums as they are first read."""

import base64
import copy
import os
import pickle
import threading
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cossim_fast import CosineIndex, topk
from cossim_fast.retrieval import FileError
from cossim_fast.retrieval.storage import block_sums, tensor_file
from index_data import QUERIES, assert_same, changed_index, rows

KIND = "cossim_fast index"


@pytest.fixture
def small_blocks(monkeypatch):
    """Four rows of 16 a checksum."""
    monkeypatch.setattr(block_sums, "_BYTES", 256)


@pytest.fixture
def saved(tmp_path):
    changed_index().save(tmp_path / "index")
    return tmp_path / "index"


def rows_of(path, part=0):
    """The rows of a part in a file, to be written to."""
    with tensor_file.TensorFile(path, KIND) as file:
        offset, shape, _ = file.places[f"{part}.rows"]
    return np.memmap(path, np.float32, "r+", offset, shape)


def turn(path, row=slice(None), part=0):
    """Turn rows round, which no norm shows."""
    held = rows_of(path, part)
    held[row] *= -1
    held.flush()


# Bits.


def test_a_bit_that_flips_anywhere_is_noticed_or_harmless(saved):
    whole = np.fromfile(saved, np.uint8)
    wanted = CosineIndex.load(saved).search(QUERIES, 396)
    with tensor_file.TensorFile(saved, KIND) as file:
        tensors = {
            name: (first, first + max(tensor_file._size(dtype, shape), 1))
            for name, (first, shape, dtype) in file.places.items()
        }
    header = min(first for first, _ in tensors.values())
    text = header - len(bytes(whole[8:header])) + len(bytes(whole[8:header]).rstrip())
    regions = {"length": (0, 8), "header": (8, 8 + text), "padding": (text, header), **tensors}
    generator = np.random.default_rng(0)
    for name, (first, last) in regions.items():
        for place in generator.integers(first, last, 12):
            changed = whole.copy()
            changed[place] ^= 1 << generator.integers(0, 8)
            changed.tofile(saved)
            refused = False
            try:
                found = CosineIndex.load(saved).search(QUERIES, 396)
            except FileError:
                refused = True
            else:
                assert_same(found, wanted)
            assert refused or name in ("header", "padding"), (name, place)


SEARCHES = {
    "search": lambda index: index.search(QUERIES, 5),
    "one query": lambda index: index.search(QUERIES[:1], 5),
    "ranked": lambda index: index.search(rows(70, seed=3), 390),
    "range_search": lambda index: index.range_search(QUERIES, 0.5),
    "most pairs": lambda index: index.range_search(QUERIES, -0.9),
    "explain": lambda index: index.explain(QUERIES, 5),
    "save": lambda index: index.save(index.other),
    "copy": lambda index: pickle.loads(pickle.dumps(index)).search(QUERIES, 5),
}


@pytest.mark.parametrize("screen", ["auto", "float32", "bfloat16"])
@pytest.mark.parametrize("name", SEARCHES)
def test_whatever_reads_rows_compares_them(name, screen, small_blocks, tmp_path):
    x = rows(2000)
    CosineIndex(x, screen=screen).save(tmp_path / "index")
    wanted = CosineIndex(x, screen=screen)
    wanted.other = tmp_path / "wanted"
    index = CosineIndex.load(tmp_path / "index")
    index.other = tmp_path / "other"
    expected, found = SEARCHES[name](wanted), SEARCHES[name](index)
    if name not in ("explain", "save"):
        assert_same(found, expected)
    (tmp_path / "other").unlink(missing_ok=True)
    index = CosineIndex.load(tmp_path / "index")  # which compares 16 rows
    index.other = tmp_path / "other"
    turn(tmp_path / "index")
    with pytest.raises(FileError, match="index is damaged, or holds other vectors"):
        SEARCHES[name](index)
    assert not (tmp_path / "other").exists()


READERS = {
    "scoring": ("auto", torch.float32, lambda index, q: index.search(q, 5)),
    "a float32 screen": ("float32", torch.float32, lambda index, q: index.search(q, 5)),
    "a bfloat16 screen": ("bfloat16", torch.float32, lambda index, q: index.search(q, 5)),
    "one product of rows": ("auto", torch.float32, lambda index, q: index.search(q, 400)),
    "one product of centred rows": ("auto", torch.float16, lambda index, q: index.search(q, 400)),
    "pairs that are scored": ("auto", torch.float32, lambda index, q: index.range_search(q, 0.9)),
    "a product of all pairs": ("auto", torch.float32, lambda index, q: index.range_search(q, -0.8)),
}


@pytest.mark.parametrize("name", READERS)
def test_a_row_that_was_best_does_not_go_missing(name, small_blocks, tmp_path, monkeypatch):
    screen, store, search = READERS[name]
    if "one product" in name:
        monkeypatch.setattr("cossim_fast.retrieval.nearest.ranked.pays", lambda *_: True)
    if "all pairs" in name:
        monkeypatch.setattr("cossim_fast.retrieval.joins.sweep.Sweep._candidates", lambda *_: None)
    x, queries = rows(2000), torch.ones(70, 16) + 0.01 * rows(70, seed=3)
    x[1000], x[1001:1008] = 1.0, -1.0
    CosineIndex(x, screen=screen, store=store).save(tmp_path / "index")
    index = CosineIndex.load(tmp_path / "index")
    search(index, queries)
    index = CosineIndex.load(tmp_path / "index")
    with tensor_file.TensorFile(tmp_path / "index", KIND) as file:
        first = file.places["0.rows"][0] + 1000 * 16 * store.itemsize
    with (tmp_path / "index").open("r+b") as file:  # nothing else of its block is found
        file.seek(first)
        file.write(torch.full((16,), -1.0, dtype=store).view(torch.uint8).numpy().tobytes())
    with pytest.raises(FileError, match=r"rows 1000 to 100. does not fit"):
        search(index, queries)


def test_a_certificate_compares_what_it_scores(small_blocks, tmp_path):
    CosineIndex(rows(2000)).save(tmp_path / "index")
    index = CosineIndex.load(tmp_path / "index")
    found = index.search(QUERIES, 5, certify=True)
    seen = index._snapshot.parts[0].rows.sums._progress.repeat(4)
    turn(tmp_path / "index", seen == block_sums._UNKNOWN)
    with pytest.raises(FileError, match="damaged"):
        found.certificate.verify()


def test_rows_that_are_not_read_may_be_damaged(small_blocks, tmp_path):
    x = torch.cat([QUERIES, -QUERIES.repeat(300, 1)])
    CosineIndex(x).save(tmp_path / "index")
    index = CosineIndex.load(tmp_path / "index")
    turn(tmp_path / "index", slice(1000, 1002))
    assert index.search(QUERIES, 1).indices[:, 0].tolist() == list(range(7))
    with pytest.raises(FileError, match="the checksum of rows 1000 to 1003 does not fit"):
        index.search(-QUERIES, 300)


# How often.


def test_a_block_is_compared_once_whoever_asks(small_blocks, tmp_path, monkeypatch):
    x = rows(2000)
    CosineIndex(x).save(tmp_path / "index")
    seen = []

    def crc32(raw, start=0):
        seen.append(np.frombuffer(raw, np.uint8).ctypes.data)
        return zlib.crc32(raw, start)

    index = CosineIndex.load(tmp_path / "index")
    checked = index._snapshot.parts[0].rows.sums
    already = 500 - checked._left
    assert 0 < already <= 16
    monkeypatch.setattr(block_sums, "zlib", SimpleNamespace(crc32=crc32))
    wanted, found, barrier = topk(QUERIES, x, 2000), [], threading.Barrier(8)

    def search():
        barrier.wait()
        found.append(index.search(QUERIES, 2000))

    threads = [threading.Thread(target=search) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    for each in found:
        assert_same(each, wanted)
    assert len(seen) == len(set(seen)) == 500 - already
    assert checked._left == 0
    index.search(QUERIES, 2000)
    assert len(seen) == 500 - already


def one_block(flipped=False):
    raw = np.arange(64, dtype=np.uint8)
    checked = block_sums.BlockSums(raw, 4, np.array([zlib.crc32(raw)], np.uint32), "the file")
    if flipped:
        raw[3] ^= 1
    return checked


def test_a_block_that_does_not_fit_is_refused_each_time():
    checked = one_block(flipped=True)
    for _ in range(2):
        with pytest.raises(FileError, match=r"the file is damaged.* rows 0 to 3 does not fit"):
            checked.check(slice(0, 1))


def test_who_waits_for_a_thread_that_fails_compares_itself():
    checked, errors = one_block(flipped=True), []
    checked._progress[0] = block_sums._CLAIMED  # by another thread

    def wait():
        try:
            checked.check(torch.tensor([2]))
        except FileError as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    with checked._turn:
        checked._progress[0] = block_sums._UNKNOWN  # it was interrupted
        checked._turn.notify_all()
    thread.join(10)
    assert len(errors) == 1


def test_a_forked_child_compares_what_a_thread_of_its_parent_was_at():
    checked = one_block()
    checked._progress[0] = block_sums._CLAIMED
    with checked._turn:  # held by a thread that is not in the child
        child = copy.copy(checked)
        child.forked()
    child.check(slice(0, 4))
    assert child._left == 0


def test_who_does_not_want_it_is_not_held_up(small_blocks, saved):
    turn(saved, 100)
    with pytest.raises(FileError, match="rows does not fit"):
        CosineIndex.load(saved, mmap=False)
    for mmap in (True, False):
        index = CosineIndex.load(saved, mmap=mmap, verify=False)
        assert_same(
            index.search(QUERIES, 3), CosineIndex.load(saved, verify=False).search(QUERIES, 3)
        )
    raw = bytearray(saved.read_bytes())
    with tensor_file.TensorFile(saved, KIND) as file:
        raw[file.places["0.codes"][0]] ^= 1
    saved.write_bytes(raw)
    with pytest.raises(FileError, match=r"checksum of 0\.codes"):
        CosineIndex.load(saved, verify=False)


# Files of version 1, which had one checksum for all rows of a part.

VERSION_1 = (
    "c-rllO>7%Q6o6yeCaHil1yz&-"
    "$XIGfD~Imy>~4}~+9pIr1d5=fh&ZywJG03a$1dJYnkY3<5eNw(^?;DLBHDxDNJ>>&yizR$TnbXDK!CWQBIQtVX-KF*Wo"
    "JFJjw7cD?hX7d&ogi5dq4Bu9K5`(DUjJ%GC4t9gprGq$yj%EHs+W)LNfl(7@Bmmv3N9w-"
    "I?QrZdmCoa%G9`ov^VxPWKeLvav&dJ8sU-j5&12%uZ%px@XYUag=j|FM_kL*cnV0X4Y}+iKK-bH|lSZX=<DzImgZh{>1"
    ">4GkuT#YBmuQo^VLcMrkMEZzN)tAtOWANW%Y)8Z+741T(2JHV9S`H<1ix77-"
    "gFFm$PG5vz$QU}~m<O>SI4Oj(jCSVZQg3ek^2$Cjm)EhfphIa0PLNCZe#Qap-"
    "W_5?d4DW<LxpoA8L?MY@cb*!oi!QAGUD9wPXAH8Ina(Ik5Hl9RjRu80Ws+Q7uh!uBO(-aN!N{LnO0MIc2Dh>-$aVKg-k"
    "xWzpR=LBHp-4m&crYk!Pw|7YDGDhN#!1rln4L<mVKuXu@L-"
    "gb04!1ECYMaRtYXA46u>RwN^eLNRBVZ<@M@~Ot+uZ4Mu0AfDh^Yxc+*X6ia_^6%+n?uCkT^VGVDbQ>oU>>F_!m@VOIv@"
    "6AsH$AQ%m290ltUeUy$8owKZEIV6~e5g{H0%4nGqG+Q-"
    "ea3c($#G|65GYaj?Is)+lKE;p%iny_i#F`*Oibo|uV4w{oRTJYAC`M<P^|M-"
    "o;%6m^AfS{db5$(m*DRzcH7O$SDYC>WOvmcZ6yIrWknGn+1_B2KQ+Q`o&9r<3<?zM{Cblk&LNUB^_;lAr@>7;I-"
    "aYGANL-"
    "^rKEns;{MzfUkWK@tv~#@`qRlKDfQNGz6*BxDQUreW!Ru9xIe7T+(E4+#(78~AaN5~ZS09S@DH{&<3a^?my^2EHrRJ?E"
    "bU=W{2ZTPO)u0!vK~hZ$pmz_#VsE5GHA@X>sez&Kr(<I!S_7p~6mQ47D3K3|M-5eBq;*SFGaUasg{Y(Xe6%4AX-GpF(v"
    "W{IO-v$8-^27KrZ+Rah3RIdTljk5-0S(_CAfL|+2Z5hEyI_09$iv}Mfk>adw1K1H({y!p#AjRGMwN37>eImg8R-5-"
    "*~X|CR`qpPB;It2sf?bZe{vDrrF;UO%E`=gXx`2w=yjsdE|w~=073Nqjm4Ci_djl?$x_m_jL{(>OFJpC_Mk=I4qrN@B8"
    "NS177>dN$;I)r;CF^Cwy-(52eV}zU6^?y~OP~?}x-"
    "zFBbj2FZX^P4$O4G_VIU%yB?kLKH0zDvu7Ue`|490w(lK=JGN}U^xFq7d4F9U^Yph`imh5dY`f;dJ@aq(E&RIMJM;TVu"
    "lbiN#b@^1508z#312hYdOMz<?=f!8!KGJQ;N|Y0iu(1ucj@O-aQDXxJ?C$uo=7Cp6e&xf`=4wneYVhbXxEjq-"
    "*yax>leOg=|AxI#S4r5M;`k6qaVAP{^L?A2&IBpDoCY*Tq-D~f?6toQbCJEM&j4bHvNxf`X45>7oh"
)


@pytest.fixture
def old(tmp_path):
    (tmp_path / "old").write_bytes(zlib.decompress(base64.b85decode(VERSION_1)))
    return tmp_path / "old"


@pytest.mark.parametrize("mmap", [True, False])
def test_an_index_of_version_1_is_read(mmap, old):
    x = torch.arange(1.0, 37.0).view(9, 4).sin()
    index = CosineIndex.load(old, mmap=mmap)
    assert index.ids.tolist() == ["é0", "é1", "é2", "é4", "é5", "é6", "é7", "x"]
    x = x[[0, 1, 2, 4, 5, 6, 7, 8]]
    assert_same(index.search(x, 8)[:1], topk(x, x, 8)[:1])
    index.save(old)  # in the present version
    assert_same(CosineIndex.load(old).search(x, 8)[:1], topk(x, x, 8)[:1])
    with tensor_file.TensorFile(old, KIND) as file:
        assert file.version == 2


def test_an_index_of_version_1_is_compared_as_a_whole(old):
    turn(old, 7)
    for mmap in (True, False):
        with pytest.raises(FileError, match=r"the checksum of 0\.rows does not fit"):
            CosineIndex.load(old, mmap=mmap)
        assert len(CosineIndex.load(old, mmap=mmap, verify=False)) == 8


# Pickles, which name the file.


def in_a_file(kind, folder):
    x = rows(3000)
    if kind == "path":
        return CosineIndex(x, path=folder / "file"), 4 * 4096
    if kind == "loaded":
        CosineIndex(x).save(folder / "file")
        with tensor_file.TensorFile(folder / "file", KIND) as file:
            return CosineIndex.load(folder / "file"), file.places["0.rows"][0]
    np.save(folder / "file.npy", x.numpy())
    os.symlink(folder / "file.npy", folder / "file")
    return CosineIndex(np.load(folder / "file", mmap_mode="r")), 128


@pytest.mark.parametrize("kind", ["path", "loaded", "map"])
def test_a_copy_notices_that_most_rows_were_replaced(kind, small_blocks, tmp_path):
    index, offset = in_a_file(kind, tmp_path)
    wanted, pickled = index.search(QUERIES, 9), pickle.dumps(index)
    again = pickle.loads(pickled)
    assert_same(again.search(QUERIES, 9), wanted)
    held = np.memmap(tmp_path / "file", np.float32, "r+", offset, (3000, 16))
    kept = torch.linspace(0, 2999, 16).long().tolist()  # all that was looked at once
    others = np.delete(np.arange(3000), kept)
    held[others] = held[others[::-1]]
    held.flush()
    with pytest.raises(FileError, match=r"file(\.npy)? is damaged, or holds other vectors"):
        pickle.loads(pickled).search(QUERIES, 9)


@pytest.mark.parametrize("kind", ["path", "map"])
def test_what_changed_between_coding_and_pickling_or_saving_is_noticed(kind, tmp_path):
    index, offset = in_a_file(kind, tmp_path)
    held = np.memmap(tmp_path / "file", np.float32, "r+", offset, (3000, 16))
    held[1234, 5] += 0.5
    held.flush()
    with pytest.raises(FileError, match="is damaged, or holds other vectors"):
        pickle.dumps(index)
    with pytest.raises(FileError, match="is damaged, or holds other vectors"):
        index.save(tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_a_file_that_was_cut_is_refused_before_it_is_mapped(tmp_path):
    index, _ = in_a_file("path", tmp_path)
    pickled = pickle.dumps(index)
    del index
    os.truncate(tmp_path / "file", 4 * 4096 + 2999 * 64)
    with pytest.raises(FileError, match="file is truncated: 208320 bytes, at least 208384"):
        pickle.loads(pickled)
