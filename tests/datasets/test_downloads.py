"""Archives of data that are downloaded, checked and unpacked."""

import hashlib
import io
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from mad.cli import data
from mad.cli.archives import ARCHIVES, Archive
from mad.errors import MadError


def tarred(files):
    """The bytes of a tar archive."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return sink.getvalue()


CONTENT = tarred({"birds/1.txt": bytes(range(256)) * 40})
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def server():
    """A server of CONTENT; it knows ranges if ``ranges`` is true, and breaks off after ``most`` bytes."""

    class Handler(BaseHTTPRequestHandler):
        ranges, most, asked = True, len(CONTENT), []

        def do_GET(self):
            wanted = self.headers.get("Range")
            self.asked.append(wanted)
            start = int(wanted[6:-1]) if wanted and self.ranges else 0
            if start >= len(CONTENT):
                self.send_error(416)
                return
            self.send_response(206 if wanted and self.ranges else 200)
            self.send_header("Content-Length", str(len(CONTENT) - start))
            self.end_headers()
            self.wfile.write(CONTENT[start:][: self.most])

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as there:
        Handler.url = f"http://127.0.0.1:{there.server_port}/birds.tar"
        thread = threading.Thread(target=there.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield Handler
        there.shutdown()
        thread.join()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_broke_off_goes_on(tmp_path, server, ranges):
    server.ranges, server.most = ranges, 5_000
    archive = Archive(server.url, MD5, below="in")
    with pytest.raises(MadError, match=rf"5000 of {len(CONTENT)} bytes"):
        archive.fetch("birds", tmp_path)
    server.most = len(CONTENT)
    archive.fetch("birds", tmp_path)
    assert (tmp_path / "in/birds/1.txt").read_bytes() == bytes(range(256)) * 40
    assert server.asked == [None, "bytes=5000-"]
    archive.fetch("birds", tmp_path)  # the archive is there
    assert len(server.asked) == 2
    assert not (tmp_path / "birds.tar.part").exists()


def test_a_download_that_was_whole_is_taken(tmp_path, server):
    (tmp_path / "birds.tar.part").write_bytes(CONTENT)
    Archive(server.url, MD5).fetch("birds", tmp_path)
    assert (tmp_path / "birds/1.txt").exists()


def test_another_file_than_the_published_one_is_not_unpacked(tmp_path, server):
    for content in (None, b"put there by hand"):
        if content:
            (tmp_path / "birds.tar").write_bytes(content)
        with pytest.raises(MadError, match=r"^[^\n]*MD5 should be 0000[^\n]*$"):
            Archive(server.url, "0000").fetch("birds", tmp_path)
        assert not (tmp_path / "birds").exists()
        assert not (tmp_path / "birds.tar.part").exists()


def test_offline_it_says_which_file_to_put_where(tmp_path, monkeypatch, capsys, mad_data):
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as gone:
        url = f"http://127.0.0.1:{gone.server_port}/tiny-imagenet-200.zip"
    for name in ARCHIVES:
        monkeypatch.setitem(ARCHIVES, name, Archive(url, MD5))
        assert mad_data(name, "--root", tmp_path) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert f"{tmp_path}/tiny-imagenet-200.zip" in error
    assert mad_data("imagenet", "--root", tmp_path) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"{tmp_path}/imagenet/ILSVRC2012_img_train.tar" in error
    (tmp_path / "file").touch()
    assert mad_data("digits", "--root", tmp_path / "file") == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_imagenets_archive_of_archives_is_unpacked(tmp_path, monkeypatch, capsys, mad_data):
    content = tarred({f"n{n}.tar": tarred({f"n{n}_1.JPEG": b"one", f"n{n}_2.JPEG": b"two"}) for n in (1, 2)})
    place = tmp_path / "imagenet"
    place.mkdir()
    (place / data.IMAGENET[0]).write_bytes(content)
    assert mad_data("imagenet", "--root", tmp_path) == 1
    assert "damaged" in capsys.readouterr().err
    monkeypatch.setattr(data, "IMAGENET", (data.IMAGENET[0], hashlib.md5(content).hexdigest()))
    assert mad_data("imagenet", "--root", tmp_path) == 1
    assert "holds 4 training images of 2 classes, imagenet has 1281167 of 1000" in capsys.readouterr().err
    assert (place / "train/n2/n2_1.JPEG").read_bytes() == b"one"


def test_what_is_there_is_shown(tmp_path, monkeypatch, capsys, mad_data):
    assert mad_data("digits", "--root", tmp_path) == 0
    assert "digits train: 1,297 images (1, 28, 28), 10 classes" in capsys.readouterr().out
    assert mad_data("no_such", "--root", tmp_path) == 1
