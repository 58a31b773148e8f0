"""Object stores, and whatever else has paths that begin with a protocol.

``s3://`` and ``gs://`` are reached by arrow's own clients, all others by fsspec's.
"""

from __future__ import annotations

import re
from contextlib import suppress
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from cossim_fast._extras import require
from cossim_fast.distributed.ranges import Ranges

# Protocols that arrow brings clients for; fsspec's need a package each.
_OF_ARROW = ("s3", "gs")
# Options of a path, as "s3://bucket/x.npy?region=eu-central-1"; a pattern may have a question mark.
_OPTIONS = re.compile(r"\?(?=[A-Za-z_]\w*=)")


def name_of(path: str) -> str:
    """A path without its options."""
    return _OPTIONS.split(path, maxsplit=1)[0]


def joined(folder: str, name: str) -> str:
    """The path of a file in a folder, with the options of the folder."""
    base = name_of(folder)
    return f"{base.rstrip('/')}/{name}{folder[len(base) :]}"


def store_of(path: str) -> _ArrowStore | _FsspecStore:
    """What holds a path that begins with a protocol.

    Raises:
        ValueError: there is a password in it, which a manifest would keep.
    """
    scheme, host, _, _, _ = urlsplit(name_of(path))
    if ":" in host.rpartition("@")[0]:
        raise ValueError(
            f"expected a path {scheme}://… without a password; give it to the client by its own "
            "settings, such as variables of the environment"
        )
    if scheme not in _OF_ARROW:
        return _FsspecStore(scheme)
    return _arrow_store(f"{scheme}://{host}", path[len(name_of(path)) :])


@lru_cache(maxsize=64)
def _arrow_store(root: str, options: str) -> _ArrowStore:
    return _ArrowStore(root, options)


class _ArrowStore:
    """A bucket, by one of arrow's clients.

    Args:
        root: protocol and bucket.
        options: of the client, as a path ends with them.
    """

    def __init__(self, root: str, options: str) -> None:
        self._fs = require("pyarrow.fs", extra="distributed")
        self._root, self._options = root, options
        self._client, self._bucket = self._fs.FileSystem.from_uri(root + options)

    def _key(self, path: str) -> str:
        """A path as the client has it."""
        return f"{self._bucket}{name_of(path)[len(self._root) :]}".rstrip("/")

    def files(self, path: str) -> list[str] | None:
        key = self._key(path)
        pattern = re.search(r"[*?\[]", key)
        if pattern is None:
            kind = self._client.get_file_info(key).type
            if kind == self._fs.FileType.File:
                return None
            base, recursive = key, False
        else:
            base = key[: pattern.start()].rpartition("/")[0]
            recursive = "/" in key[pattern.start() :]
        chosen = self._fs.FileSelector(base, allow_not_found=True, recursive=recursive)
        found = [
            info.path
            for info in self._client.get_file_info(chosen)
            if info.type == self._fs.FileType.File
        ]
        if pattern is not None:
            translate = require("fsspec.utils", extra="distributed").glob_translate
            fits = re.compile(translate(key))
            found = [name for name in found if fits.match(name)]
        elif not found:
            return None
        return [f"{self._root}{name[len(self._bucket) :]}{self._options}" for name in found]

    def open(self, path: str) -> Ranges:
        file = self._client.open_input_file(self._key(path))
        version = self._version(file, path)
        return Ranges(
            path, file.size(), version, lambda at, count: file.read_at(count, at), file.close
        )

    def _version(self, file: Any, path: str) -> str:
        etag = (file.metadata() or {}).get("ETag")
        if etag is None:
            return str(self._client.get_file_info(self._key(path)).mtime_ns)
        return etag.decode() if isinstance(etag, bytes) else str(etag)

    def put(self, path: str, content: bytes | memoryview) -> None:
        # It is there once it was closed.
        with self._client.open_output_stream(self._key(path)) as file:
            file.write(content)

    def arrow_client(self, path: str) -> tuple[Any, str]:
        """A file system of arrow's, and the path as it has it."""
        return self._client, self._key(path)

    def exists(self, path: str) -> bool:
        kind = self._client.get_file_info(self._key(path)).type
        return bool(kind == self._fs.FileType.File)

    def delete(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._client.delete_file(self._key(path))


class _FsspecStore:
    """What one of fsspec's clients reaches.

    An object store has a file as a whole or not at all; on what is a file system, a task that is
    killed as it writes leaves a part of a file, which readers notice.

    Args:
        protocol: that of the paths.
    """

    def __init__(self, protocol: str) -> None:
        self._protocol = protocol

    def _at(self, path: str) -> tuple[Any, str]:
        """A client, and the path as it has it."""
        # What was listed once is not to be taken for what is there now.
        core = require("fsspec.core", extra="distributed")
        client, key = core.url_to_fs(path, use_listings_cache=False)
        return client, key

    def files(self, path: str) -> list[str] | None:
        client, key = self._at(path)
        if client.isdir(key):
            found = client.ls(key, detail=True)
        elif re.search(r"[*?\[]", key) and not client.exists(key):
            found = client.glob(key, detail=True).values()
        else:
            return None
        return [client.unstrip_protocol(info["name"]) for info in found if info["type"] == "file"]

    def open(self, path: str) -> Ranges:
        client, key = self._at(path)
        info = client.info(key)
        if info["type"] != "file":
            raise IsADirectoryError(f"expected a file at {path}, which is a folder")
        version = info.get("ETag") or info.get("etag") or client.ukey(key)
        return Ranges(
            path,
            info["size"],
            str(version),
            lambda at, count: client.cat_file(key, start=at, end=at + count),
            lambda: None,
        )

    def put(self, path: str, content: bytes | memoryview) -> None:
        client, key = self._at(path)
        if "/" in key:
            client.makedirs(key.rpartition("/")[0], exist_ok=True)
        client.pipe_file(key, bytes(content))

    def arrow_client(self, path: str) -> tuple[Any, str]:
        """A file system of arrow's, and the path as it has it."""
        fs = require("pyarrow.fs", extra="distributed")
        client, key = self._at(path)
        return fs.PyFileSystem(fs.FSSpecHandler(client)), key

    def exists(self, path: str) -> bool:
        client, key = self._at(path)
        return bool(client.isfile(key))

    def delete(self, path: str) -> None:
        client, key = self._at(path)
        with suppress(FileNotFoundError):
            client.rm_file(key)
