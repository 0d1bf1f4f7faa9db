"""Downloads through networks and servers that fail; and what a later try makes of what they left."""

import hashlib
import socket
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import requests

from src.data import download
from src.data.cifar10 import Cifar10
from src.data.enwik8 import Enwik8
from src.data.portions import Portions
from tests.bad.door import Bad, file, full_after, outcome, patched, snapshot
from tests.bad.test_data_files import CIFAR, ENWIK8, WHOLE, zipped
from tests.data.server import Served, serve
from tests.data.test_enwik8 import CONTENT, Small

NOBODY = "http://127.0.0.1:9"  # the port of `discard`, where nobody listens
PROXIES = dict.fromkeys(("HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"))
ENWIK8_PART = r"data/enwik8/enwik8\.zip\.part"


def asks(url, kind=Enwik8):
    """With a data set downloaded from ``url``, of the size of the small stand-in."""
    return patched((kind, "URL", url), (Enwik8, "SIZE", Small.SIZE), (Enwik8, "MD5", Small.MD5),
                   (download, "RETRY_PAUSE_S", 0.0))  # fmt: skip


def from_server(served, *more, kind=Enwik8, scheme="http"):
    """While a server of this machine behaves as ``served`` says."""

    def entered(folder):
        stack = ExitStack()
        url = stack.enter_context(serve(served())).url.replace("http:", f"{scheme}:")
        for one in (asks(url, kind), *more):
            stack.enter_context(one(folder))
        return stack

    return entered


def answering(*lines, body=b""):
    """While a server gives the same bytes to every request: status line and headers, then ``body``."""

    def entered(folder):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                host = f"http://127.0.0.1:{self.server.server_port}"
                self.wfile.write("\r\n".join(lines).replace("HERE", host).encode() + b"\r\n\r\n" + body)
                self.close_connection = True

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        stack = ExitStack()
        stack.callback(server.server_close)
        stack.callback(server.shutdown)
        stack.enter_context(asks(f"http://127.0.0.1:{server.server_port}/file.zip")(folder))
        return stack

    return entered


def silent(folder):
    """While a port takes connections and never answers."""
    stack = ExitStack()
    listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    port = listening.getsockname()[1]
    stack.enter_context(patched((download, "TIMEOUT_S", (0.3, 0.3)))(folder))
    stack.enter_context(asks(f"http://127.0.0.1:{port}/x")(folder))
    return stack


def on_enwik8(sentence, around, **more):
    return Bad(ENWIK8, sentence, around=around, **more)


def on_cifar(sentence, around, **more):
    return Bad(CIFAR, sentence, around=around, **more)


def status(code):
    return from_server(lambda: Served(b"", status=code))


BY_HAND = "place enwik8, enwik8.zip, enwik8.gz or enwik8.xz in .*/data/enwik8 or .*/data by hand"
PAGE = b"<html>Please log in to the airport's network</html>"
WRONG = zipped([("enwik8", CONTENT[:-1] + b"!")])

TABLE = {
    "not found": on_enwik8(f".* answered 404 Not Found; {BY_HAND}", status(404)),
    "server error": on_enwik8(f".* answered 500 Internal Server Error; {BY_HAND}", status(500)),
    "forbidden": on_enwik8(f".* answered 403 Forbidden; {BY_HAND}", status(403)),
    "too many requests": on_enwik8(f".* answered 429 Too Many Requests; {BY_HAND}", status(429)),
    "redirected in a circle": on_enwik8(
        rf"cannot reach .*\(it redirects without end\); {BY_HAND}",
        answering("HTTP/1.0 302 Found", "Location: HERE/x"),
    ),
    "redirected to no address": on_enwik8(f"cannot reach .*; {BY_HAND}",
                                          answering("HTTP/1.0 302 Found", "Location: gopher://x/")),
    "no HTTP": on_enwik8(f"cannot reach .*; {BY_HAND}", answering("SSH-2.0-OpenSSH_9.2")),
    "nobody listens": on_enwik8(f"cannot reach {NOBODY}/x .Connection refused.; {BY_HAND}", asks(f"{NOBODY}/x")),
    "unknown host": on_enwik8(f"cannot reach http://nowhere.invalid/x .*; {BY_HAND}", asks("http://nowhere.invalid/x")),
    "no answer": on_enwik8(f"cannot reach .* .no answer in time.; {BY_HAND}", silent),
    "https to a plain server": on_enwik8(
        f"cannot reach https://.*; {BY_HAND}", from_server(lambda: Served(WHOLE), scheme="https")
    ),
    "proxy that is not there": on_enwik8(
        rf"cannot reach http://example.com/x \(Connection refused, by the proxy of HTTP_PROXY\); {BY_HAND}", asks("http://example.com/x"),
        env={**PROXIES, "HTTP_PROXY": NOBODY, "http_proxy": NOBODY},
    ),
    "proxy with a password": on_enwik8(
        r"(?!.*secret)cannot reach http://example.com/x \(Connection refused, by the proxy", asks("http://example.com/x"),
        env={**PROXIES, "HTTP_PROXY": "http://me:secret@127.0.0.1:9", "http_proxy": "http://me:secret@127.0.0.1:9"},
    ),
    "proxy that is no address": on_enwik8(
        r"(?!.*secret)cannot reach http://example.com/x \(no address, by the proxy of HTTP", asks("http://example.com/x"),
        env={**PROXIES, "HTTP_PROXY": "http://me:secret@:x", "http_proxy": "http://me:secret@:x"},
    ),
    "a page instead of the file": on_enwik8(".*enwik8.zip cannot be unpacked .*damaged or cut",
                                            from_server(lambda: Served(PAGE))),
    "another file": on_enwik8(".*is not enwik8: expected md5", from_server(lambda: Served(WRONG))),
    "breaks off each time": on_enwik8(
        r"the download of .* broke off after 0 bytes .*; run the same command again to go on, or place",
        from_server(lambda: Served(WHOLE, break_after=0, breaks=99)), left=ENWIK8_PART,
    ),
    "breaks off behind an earlier part": on_enwik8(
        r"the download of .* broke off after 100 bytes .*; run the same command again",
        from_server(lambda: Served(WHOLE, break_after=0, breaks=99)),
        prepare=file("data/enwik8/enwik8.zip.part", WHOLE[:100]),
    ),
    "an empty file": on_enwik8(".*enwik8.zip cannot be unpacked", from_server(lambda: Served(b""))),
    "no room": on_enwik8(
        "cannot write .*File too large.; choose another paths.data_dir",
        from_server(lambda: Served(bytes(100_000)), full_after(20_000)), left=ENWIK8_PART,
    ),
    "data folder is a file": on_enwik8("cannot write .*paths.data_dir", from_server(lambda: Served(WHOLE)),
                                       prepare=file("data")),
    "cifar10: wrong checksum": on_cifar(
        f".* sent a wrong file: expected md5 {Cifar10.ARCHIVE_MD5}, found [0-9a-f]{{32}}; nothing of it was kept",
        from_server(lambda: Served(PAGE), kind=Cifar10),
    ),
    "cifar10: not found": on_cifar(".* answered 404 Not Found; place cifar-10-python.tar.gz or the folder",
                                   from_server(lambda: Served(b"", status=404), kind=Cifar10)),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_is_refused_in_a_sentence_and_damages_nothing(name, refused):
    refused(TABLE[name], name)


def test_a_wrong_earlier_part_is_thrown_away_and_the_next_try_is_whole(tmp_path, monkeypatch, capfd):
    """The first bytes came from another file: the whole is refused, nothing of it stays, and the next try works."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.chdir(tmp_path)
    file("data/cifar10/cifar-10-python.tar.gz.part", b"?" * 10)(tmp_path)
    content = b"CIFAR" * 100
    with serve(Served(content)) as served, asks(served.url, Cifar10)(tmp_path), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cifar10, "ARCHIVE_MD5", hashlib.md5(content).hexdigest())
        code, _, err = outcome("train", CIFAR.split()[1:], monkeypatch, capfd)
        assert code == 2 and "sent a wrong file: expected md5" in err and served.asked == ["bytes=10-"]
        assert {path.name for path in (tmp_path / "data/cifar10").iterdir()} == {".lock"}
        code, _, err = outcome("train", CIFAR.split()[1:], monkeypatch, capfd)
        assert "cifar-10-python.tar.gz cannot be read" in err  # it came whole; that it is no archive is another matter
    assert (tmp_path / "data/cifar10/cifar-10-python.tar.gz").read_bytes() == content


def test_what_is_there_is_not_asked_of_the_network(tmp_path, monkeypatch):
    """A data set that was used before needs no network at all."""
    file("enwik8.zip", WHOLE)(tmp_path)
    monkeypatch.setattr(requests, "get", None)
    Small(tmp_path, Portions(64, 4)).prepare_data()
    before = snapshot(tmp_path)
    Small(tmp_path, Portions(64, 4)).prepare_data()
    assert snapshot(tmp_path) == before
