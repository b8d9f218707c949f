"""A download is the whole file or none, however the connection behaves; an archive writes inside its folder or not at all."""

import hashlib
import http.server
import io
import os
import tarfile
import threading
import zipfile

import pytest

from molequi.errors import DataError
from molequi.readers import download
from molequi.readers.download import fetch, unpack

CONTENT = bytes(range(256)) * 40_000  # 10 MB: several chunks
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(monkeypatch):
    """A server on this machine: `pages` by path, `cut` the bytes after which it hangs up, `ranges` whether it continues."""

    class Handler(http.server.BaseHTTPRequestHandler):
        pages, requests, cut, ranges, codes = {"/data.bin": CONTENT}, [], [], True, []

        def do_GET(self):
            start = self.headers.get("Range")
            Handler.requests.append(start)
            if Handler.codes:
                return self.send_error(Handler.codes.pop(0))
            if self.path not in Handler.pages:
                return self.send_error(404)
            page = Handler.pages[self.path]
            first = int(start.removeprefix("bytes=").removesuffix("-")) if start and Handler.ranges else 0
            if first >= len(page):
                return self.send_error(416)
            self.send_response(206 if first else 200)
            self.send_header("Content-Length", str(len(page) - first))
            if first:
                self.send_header("Content-Range", f"bytes {first}-{len(page) - 1}/{len(page)}")
            self.end_headers()
            body = page[first:]
            self.wfile.write(body[: Handler.cut.pop(0)] if Handler.cut else body)
            self.wfile.flush()
            self.close_connection = True

        def log_message(self, *args):
            pass

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "_PAUSES", (0.0, 0.0))
    instance = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    instance.handle_error = lambda *args: None  # of a client that hangs up, as some of these tests do
    thread = threading.Thread(target=instance.serve_forever, args=(0.01,))
    thread.start()
    Handler.address = f"http://127.0.0.1:{instance.server_port}/data.bin"
    yield Handler
    instance.shutdown()
    thread.join()
    instance.server_close()


def test_a_file_comes_once(server, tmp_path):
    path = tmp_path / "new" / "data.bin"
    assert fetch(server.address, path, sha256=DIGEST.upper()) == path
    assert path.read_bytes() == CONTENT and os.listdir(path.parent) == ["data.bin"]
    fetch(server.address, path, sha256=DIGEST)
    assert server.requests == [None]
    path.write_bytes(b"mine")
    with pytest.raises(DataError, match="there is a file with another SHA-256"):
        fetch(server.address, path, sha256=DIGEST)
    assert path.read_bytes() == b"mine"


def test_a_broken_connection_is_continued(server, tmp_path):
    server.cut = [3_000_000, 1, 2_000_000]
    assert fetch(server.address, tmp_path / "a", sha256=DIGEST).read_bytes() == CONTENT
    assert server.requests == [None, "bytes=3000000-", "bytes=3000001-", "bytes=5000001-"]


def test_it_is_continued_in_a_later_call(server, tmp_path):
    server.cut = [4_000_000, 0, 0]
    with pytest.raises(DataError, match="connection ended early; what has come is kept"):
        fetch(server.address, tmp_path / "a", sha256=DIGEST)
    assert not (tmp_path / "a").exists() and (tmp_path / ".a.part").stat().st_size == 4_000_000
    server.requests.clear()
    fetch(server.address, tmp_path / "a", sha256=DIGEST)
    assert server.requests == ["bytes=4000000-"] and os.listdir(tmp_path) == ["a"]


def test_a_server_that_does_not_continue_starts_again(server, tmp_path):
    server.cut, server.ranges = [4_000_000], False
    assert fetch(server.address, tmp_path / "a", sha256=DIGEST, limit=len(CONTENT)).read_bytes() == CONTENT


@pytest.mark.parametrize("old", [b"another file", CONTENT + b"more", CONTENT])
def test_what_lies_there_may_be_of_another_file(server, tmp_path, old):
    (tmp_path / ".a.part").write_bytes(old)
    assert fetch(server.address, tmp_path / "a", sha256=DIGEST).read_bytes() == CONTENT


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.codes = [503, 429]
    fetch(server.address, tmp_path / "a", sha256=DIGEST)
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"sha256": "0" * 64}, f"has the SHA-256 {DIGEST}; wanted 0000"),
        ({"sha256": "abc"}, "wanted 64 hexadecimal digits"),
        ({"limit": 1000}, "more than 1000 bytes"),
        ({"url": "/none"}, "answers 404"),
        ({"url": "file:///etc/hostname"}, "wanted an address with http"),
        ({"url": "http://127.0.0.1:9/data.bin"}, "what has come is kept"),
    ],
)
def test_refused(server, tmp_path, change, sentence):
    options = {"sha256": DIGEST} | change
    url = options.pop("url", server.address)
    url = server.address.replace("/data.bin", url) if url.startswith("/") else url
    with pytest.raises(DataError, match=sentence):
        fetch(url, tmp_path / "a", **options)
    assert not (tmp_path / "a").exists()


# ---------------------------------------------------------------------------------------------------------------- A38


def make_zip(path, *members, mode=None):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.filename = name  # as given: the constructor cleans it
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (mode or 0o100644) << 16
            file.writestr(info, content)
    return path


def make_tar(path, *members, kind=tarfile.REGTYPE, target="", compression="gz"):
    with tarfile.open(path, f"w:{compression}") as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, target, len(content) if kind == tarfile.REGTYPE else 0
            file.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    "make, name",
    [(make_zip, "a.zip"), (make_tar, "a.tar.gz"), (make_tar, "a.tar.bz2"), (make_tar, "a.tar.xz")],
)
def test_unpacked(tmp_path, make, name):
    options = {"compression": name.split(".")[-1]} if make is make_tar else {}
    make(tmp_path / name, ("one.txt", b"1"), ("deep/er/two.txt", b"22"), **options)
    files = unpack(tmp_path / name, tmp_path / "out")
    assert [f.relative_to(tmp_path / "out").as_posix() for f in files] == ["one.txt", "deep/er/two.txt"]
    assert [f.read_bytes() for f in files] == [b"1", b"22"]
    with pytest.raises(DataError, match="exists; wanted a new folder"):
        unpack(tmp_path / name, tmp_path / "out")


def refused(tmp_path, archive, sentence, **options):
    inside = tmp_path / "inside"
    inside.mkdir(exist_ok=True)
    with pytest.raises(DataError, match=sentence):
        unpack(archive, inside / "out", **options)
    assert not os.listdir(inside) and sorted(os.listdir(tmp_path)) == sorted(["inside", archive.name])


@pytest.mark.parametrize("make", [make_zip, make_tar])
@pytest.mark.parametrize("name", ["../x", "deep/../../x", "{tmp_path}/x", "C:/x", "..\\x", "..", "a/.."])
def test_A38_paths_that_lead_out(tmp_path, make, name):
    refused(
        tmp_path,
        make(tmp_path / "archive", ("good", b"1"), (name.format(tmp_path=tmp_path), b"bad")),
        "leads out of the folder",
    )


def test_A38_links_and_devices(tmp_path):
    refused(
        tmp_path, make_zip(tmp_path / "archive", ("x", b"/etc/passwd"), mode=0o120777), "link or a device"
    )
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        refused(
            tmp_path,
            make_tar(tmp_path / "archive", ("x", b""), kind=kind, target="/etc/passwd"),
            "link or a device",
        )


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_A38_bombs(tmp_path, make):
    archive = make(tmp_path / "archive", ("zeros", bytes(20_000_000)))
    assert archive.stat().st_size < 100_000
    refused(tmp_path, archive, "more than 1000000 bytes when unpacked", max_bytes=1_000_000)
    assert unpack(archive, tmp_path / "out")[0].stat().st_size == 20_000_000  # control
    (tmp_path / "out" / "zeros").unlink()
    (tmp_path / "out").rmdir()
    refused(
        tmp_path,
        make(tmp_path / "archive", *((f"{k}", b"") for k in range(20))),
        "more than 10 files",
        max_files=10,
    )


def test_A38_a_size_that_is_a_lie(tmp_path):
    """The header of the zip says ten bytes; what is written is counted, and the sum of the content does not agree."""
    make_zip(tmp_path / "archive", ("zeros", bytes(5_000_000)))
    raw = (tmp_path / "archive").read_bytes()
    (tmp_path / "archive").write_bytes(
        raw.replace((5_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    )
    refused(tmp_path, tmp_path / "archive", "damaged or truncated", max_bytes=1_000_000)


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning:zipfile")
@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_A38_names_that_meet(tmp_path, make):
    refused(tmp_path, make(tmp_path / "archive", ("x", b"1"), ("x", b"2")), "is in it twice")
    refused(tmp_path, make(tmp_path / "archive", ("x", b"1"), ("x/y", b"2")), "cannot be unpacked|twice")


@pytest.mark.parametrize("make", [make_zip, make_tar])
def test_A36_truncated_archive(tmp_path, make):
    archive = make(tmp_path / "archive", ("x", os.urandom(100_000)))
    whole = archive.read_bytes()
    for size in (len(whole) // 2, 20, 0):
        archive.write_bytes(whole[:size])
        refused(tmp_path, archive, "damaged or truncated|cannot be unpacked")
    with pytest.raises(DataError, match="no such file"):
        unpack(tmp_path / "none", tmp_path / "out")
