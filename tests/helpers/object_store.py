"""An object store on this machine: what of S3's protocol arrow's client uses, without accounts.

Run as a process of its own it prints its port. Objects are in its memory, and are there as a whole
once they were put, or once the parts of an upload were declared complete.
"""

import contextlib
import hashlib
import io
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

OBJECTS: dict[str, bytes] = {}
UPLOADS: dict[str, dict[int, bytes]] = {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and content in one packet.
    wbufsize = -1

    disable_nagle_algorithm = True

    def handle_expect_100(self):
        going_on = super().handle_expect_100()
        self.wfile.flush()
        return going_on

    def log_message(self, *_):
        pass

    def answer(self, status, content=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def asked(self):
        url = urlsplit(self.path)
        options = parse_qs(url.query, keep_blank_values=True)
        return unquote(url.path).strip("/"), {name: values[0] for name, values in options.items()}

    def body(self):
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            content = unchunked(self.rfile)
            self.rfile.readline()
        else:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        # The client's own chunks end in a checksum.
        coded = "aws-chunked" in self.headers.get("Content-Encoding", "")
        return unchunked(io.BytesIO(content)) if coded else content

    def do_HEAD(self):
        key, _ = self.asked()
        if "/" not in key:
            self.answer(200)
        elif key in OBJECTS:
            content = OBJECTS[key]
            self.answer(200, ETag=etag(content), Content_Length=str(len(content)))
        else:
            self.answer(404)

    def do_GET(self):
        key, options = self.asked()
        if "list-type" in options:
            self.answer(200, listing(key, options), Content_Type="application/xml")
        elif key not in OBJECTS:
            self.answer(404, tagged("Error", Code="NoSuchKey"))
        elif "forbidden" in key:
            self.answer(403, tagged("Error", Code="AccessDenied"))
        else:
            content = OBJECTS[key]
            if "Range" not in self.headers:
                self.answer(200, content, ETag=etag(content))
                return
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            part = content[int(first) : int(last) + 1]
            said = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
            self.answer(206, part, ETag=etag(content), Content_Range=said)

    def do_PUT(self):
        key, options = self.asked()
        content = self.body()
        if "uploadId" in options:
            UPLOADS[options["uploadId"]][int(options["partNumber"])] = content
        elif "/" in key:
            OBJECTS[key] = content
        self.answer(200, ETag=etag(content))

    def do_POST(self):
        key, options = self.asked()
        self.body()
        if "uploads" in options:
            name = f"upload-{len(UPLOADS)}"
            UPLOADS[name] = {}
            self.answer(200, tagged("InitiateMultipartUploadResult", UploadId=name))
            return
        parts = UPLOADS[options["uploadId"]]
        OBJECTS[key] = b"".join(parts[number] for number in sorted(parts))
        self.answer(200, tagged("CompleteMultipartUploadResult", ETag=etag(OBJECTS[key])))

    def do_DELETE(self):
        key, _ = self.asked()
        OBJECTS.pop(key, None)
        self.answer(204)


def unchunked(stream):
    """What was sent as lengths in hexadecimal, each before as many bytes; up to a length of 0."""
    parts = []
    while length := int(stream.readline().split(b";")[0], 16):
        parts.append(stream.read(length))
        stream.readline()
    return b"".join(parts)


def tagged(outer, **inner):
    said = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in inner.items())
    return f"<{outer}>{said}</{outer}>".encode()


def etag(content):
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'


def listing(bucket, options):
    """Keys of a bucket: objects, and what stands before the next delimiter once."""
    prefix, delimiter = options.get("prefix", ""), options.get("delimiter", "")
    objects, folders = [], {}
    for name in sorted(OBJECTS):
        key = name.partition("/")[2]
        if not name.startswith(f"{bucket}/") or not key.startswith(prefix):
            continue
        inner = key[len(prefix) :]
        if delimiter and delimiter in inner:
            folders[prefix + inner[: inner.index(delimiter) + 1]] = None
        else:
            objects.append((key, OBJECTS[name]))
    said = "".join(
        f"<Contents><Key>{escape(key)}</Key><Size>{len(content)}</Size><ETag>{etag(content)}</ETag>"
        "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
        for key, content in objects
    )
    said += "".join(
        f"<CommonPrefixes><Prefix>{escape(folder)}</Prefix></CommonPrefixes>" for folder in folders
    )
    count = len(objects) + len(folders)
    return (
        f"<ListBucketResult><IsTruncated>false</IsTruncated><KeyCount>{count}</KeyCount>{said}"
        "</ListBucketResult>"
    ).encode()


@contextlib.contextmanager
def object_store():
    """The options that the paths of a store take, while it runs."""
    with subprocess.Popen(
        [sys.executable, __file__], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    ) as process:
        try:
            port = int(process.stdout.readline())
            yield f"?endpoint_override=127.0.0.1:{port}&scheme=http&region=here"
        finally:
            process.terminate()


def main():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
