"""Web retrieval over real sockets: what is read, what is kept, whose addresses are never asked, and what an error tells."""

from __future__ import annotations

import contextlib
import datetime
import gzip
import json
import socket
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpcore
import httpx
import pytest

from rag_serving import ServingError
from rag_serving.retrievers import pages, web
from rag_serving.retrievers.pages import PageReader, public
from rag_serving.retrievers.web import WebSearch

_TEXT = "The whole page tells much more about the matter than its snippet does, in several sentences. " * 5
PAGE = f"<html><body><article><p>{_TEXT}</p></article></body></html>"


@pytest.mark.parametrize(
    ("named", "read_as"),
    [
        ("utf-8", "utf-8"), ("ISO-8859-1", "iso8859-1"), ("windows-1252", "cp1252"), ("Shift_JIS", "shift_jis"), ("gb2312", "gb2312"),
        ("euc-kr", "euc_kr"), ("big5", "big5"), ("KOI8-R", "koi8-r"), ("utf-16", "utf-16"), ("punycode", "utf-8"), ("idna", "utf-8"),
        ("unicode_escape", "utf-8"), ("nonsense", "utf-8"), (None, "utf-8"),
    ],
)  # fmt: skip
def test_a_page_is_read_in_the_encoding_that_it_names_if_pages_are_written_in_it(named, read_as):
    """Punycode takes time that grows with the square of the length: two megabytes would hold the service up for minutes."""
    response = httpx.Response(200, headers={"content-type": f"text/html; charset={named}" if named else "text/html"})
    assert pages._charset(response) == read_as


class Serper(BaseHTTPRequestHandler):
    """A search API and its pages."""

    asked: list = []  # noqa: RUF012
    links: tuple = ("/page", "/gone", "/page")
    down, read = False, 0

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        type(self).asked.append((self.headers["x-api-key"], body["q"], body["num"]))
        base = f"http://127.0.0.1:{self.server.server_address[1]}"
        told = {"/page": ("Page", "a snippet"), "/gone": ("Gone", "what is left")}
        results = [
            {"title": told.get(link, (link,))[0], "link": base + link, "snippet": told.get(link, ("", "a snippet"))[1]}
            for link in self.links
        ]
        self.answer(500 if self.down else 200, json.dumps({"organic": results}), "application/json")

    def do_GET(self):
        if self.path == "/drip":
            return self.drip()
        if self.path == "/bomb":
            return self.answer(200, gzip.compress(b"<p>" + b"long " * 2_000_000), "text/html", "gzip")
        type(self).read += 1
        found = self.path == "/page" and not self.down
        self.answer(200 if found else 404, PAGE, "text/html; charset=utf-8")

    def drip(self):
        """Send a page a byte at a time, each soon enough after the last for a time-out per read."""
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        with contextlib.suppress(OSError):
            for byte in PAGE.encode()[:80]:
                self.wfile.write(bytes([byte]))
                time.sleep(0.05)

    def answer(self, status, text, kind, packing="identity"):
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-encoding", packing)
        self.end_headers()
        self.wfile.write(text.encode() if isinstance(text, str) else text)

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def serper():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Serper)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Serper.asked, Serper.down, Serper.read, Serper.links = [], False, 0, ("/page", "/gone", "/page")
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_the_web_is_searched_and_its_answers_are_kept(serper, tmp_path):
    web = WebSearch(f"{serper}/search", "key-1", tmp_path)
    found = web.search(["rhine", "seine"], 5)
    assert [hit.contents for hit in found[0]] == ["Page\na snippet", "Gone\nwhat is left"]
    assert [hit.score for hit in found[0]] == [1.0, 0.5]
    assert sorted(Serper.asked) == [("key-1", "rhine", 5), ("key-1", "seine", 5)]
    web.close()
    Serper.down = True
    again = WebSearch(f"{serper}/search", "key-1", tmp_path)
    assert again.search(["rhine"], 5)[0] == found[0]
    with pytest.raises(ServingError, match=r"web search at .* failed"):
        again.search(["never asked"], 5)
    again.close()


def test_pages_are_read_where_they_can_be_and_private_addresses_are_not(serper, tmp_path):
    reading = WebSearch(f"{serper}/search", "k", tmp_path / "a", fetch_pages=True, page_characters=150, private_addresses=True)
    page, gone = reading.search(["q"], 5)[0]
    assert page.contents.startswith("Page\nThe whole page tells much more")
    assert len(page.contents) <= 155
    assert gone.contents == "Gone\nwhat is left"
    reading.close()
    careful = WebSearch(f"{serper}/search", "k", tmp_path / "b", fetch_pages=True)
    assert careful.search(["q"], 5)[0][0].contents == "Page\na snippet"
    careful.close()


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.0.0.1", "169.254.169.254", "224.0.0.1", "0.0.0.0", "::1", "fe80::1%eth0", "fec0::1", "ff02::1",
        "::ffff:127.0.0.1", "::10.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b:1::8.8.8.8",
        "2002:7f00:1::", "2002:a00:1::1", "2001:0:808:808:0:0:f5ff:fffe",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public_are_known_also_inside_others(address):
    assert not public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1", "2001:0:808:808:0:0:f7f7:f7f7"]
)  # fmt: skip
def test_public_addresses_are_known_also_inside_others(address):
    assert public(address)


@pytest.mark.parametrize(
    "link", ["http://127.1/", "http://2130706433/", "http://[::1]/", "ftp://8.8.8.8/", "file:///etc/passwd", "http://", "x"]
)
def test_links_that_are_not_public_http_are_not_read(link, monkeypatch):
    def refused(*_, **__):
        raise AssertionError("connected")

    monkeypatch.setattr(socket.socket, "connect", refused)
    assert PageReader(1.0).read(link) == ""


def resolving(monkeypatch, *answers):
    """Let every name resolve to the first address, then to the second, and so on; the last stays."""
    left = list(answers)

    def getaddrinfo(host, port, *_, **__):
        address = left.pop(0) if len(left) > 1 else left[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def test_a_name_that_points_elsewhere_once_it_was_checked_gains_nothing(monkeypatch):
    resolving(monkeypatch, "8.8.8.8", "127.0.0.1")
    connected = []

    def connect(self, host, *_, **__):
        connected.append(host)
        raise httpcore.ConnectError

    monkeypatch.setattr(httpcore.SyncBackend, "connect_tcp", connect)
    assert PageReader(1.0).read("http://rebinding.test/") == ""
    assert connected == ["8.8.8.8"]


def test_every_redirect_is_checked(monkeypatch, serper):
    port = serper.rsplit(":", 1)[1]
    asked = []

    class Stream(httpcore.MockStream):
        def write(self, buffer, timeout=None):
            asked.append(buffer)

    answer = f"HTTP/1.1 302 Found\r\nlocation: http://inside.test:{port}/page\r\ncontent-length: 0\r\n\r\n".encode()
    connect = httpcore.SyncBackend.connect_tcp
    monkeypatch.setattr(
        httpcore.SyncBackend,
        "connect_tcp",
        lambda self, host, *rest, **named: Stream([answer]) if host == "8.8.8.8" else connect(self, host, *rest, **named),
    )
    resolving(monkeypatch, "8.8.8.8", "127.0.0.1")
    assert PageReader(1.0).read("http://outside.test/") == ""
    assert b"outside.test" in b"".join(asked)
    assert Serper.read == 0
    resolving(monkeypatch, "8.8.8.8", "127.0.0.1")
    assert PageReader(1.0, private=True).read("http://outside.test/").startswith("The whole page")


@pytest.fixture
def certified(tmp_path):
    """Serve one page over TLS with a certificate for page.test; yield port, certificate file and the names asked for."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "page.test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("page.test")]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file = tmp_path / "page.pem"
    file.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    context, names = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), []
    context.load_cert_chain(file)
    context.sni_callback = lambda _, asked, __: names.append(asked)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Serper)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Serper.down = False
    yield server.server_port, file, names
    server.shutdown()
    server.server_close()


def test_tls_asks_for_and_verifies_the_name_not_the_address(certified, monkeypatch):
    port, certificate, names = certified
    resolving(monkeypatch, "127.0.0.1")
    trusting = ssl.create_default_context(cafile=str(certificate))
    monkeypatch.setattr(pages.httpx, "create_ssl_context", lambda: trusting)
    reader = PageReader(5.0, private=True)
    assert reader.read(f"https://page.test:{port}/page").startswith("The whole page")
    assert reader.read(f"https://other.test:{port}/page") == ""
    assert names == ["page.test", "other.test"]


def test_a_page_that_drips_is_given_up_after_its_time(serper, tmp_path):
    Serper.links = ("/drip",)
    reading = WebSearch(f"{serper}/search", "k", tmp_path, fetch_pages=True, timeout_s=0.3, private_addresses=True)
    started = time.monotonic()
    assert reading.search(["q"], 5)[0][0].contents.endswith("a snippet")
    assert time.monotonic() - started < 3  # all of it would take four
    reading.close()


def test_a_packed_page_is_unpacked_no_further_than_the_limit(serper, monkeypatch):
    unpacked = []
    take = pages._body
    monkeypatch.setattr(pages, "_body", lambda response: unpacked.append(take(response)) or unpacked[-1])
    assert PageReader(5.0, private=True).read(f"{serper}/bomb") == ""
    assert unpacked == [None]


def test_a_page_that_failed_is_asked_again_after_minutes_not_after_a_month(serper, tmp_path, monkeypatch):
    monkeypatch.setattr(web, "RETRY_S", 0.3)
    Serper.links, Serper.down = ("/page",), False
    reading = WebSearch(f"{serper}/search", "k", tmp_path, fetch_pages=True, private_addresses=True)
    reading.search(["q"], 5)
    reading._cache.delete(json.dumps(["page", f"{serper}/page"]))
    Serper.down = True
    for _ in range(2):  # the second time it is not even asked
        assert reading.search(["q"], 5)[0][0].contents == "Page\na snippet"
    assert Serper.read == 2
    Serper.down = False
    time.sleep(0.4)
    assert reading.search(["q"], 5)[0][0].contents.startswith("Page\nThe whole page")
    reading.close()


def test_an_answer_without_results_is_asked_again_after_minutes(serper, tmp_path, monkeypatch):
    monkeypatch.setattr(web, "RETRY_S", 0.3)
    Serper.links = ()
    asking = WebSearch(f"{serper}/search", "k", tmp_path)
    assert asking.search(["q"], 5) == [[]]
    Serper.links = ("/page",)
    time.sleep(0.4)
    assert len(asking.search(["q"], 5)[0]) == 1
    asking.close()


def test_a_failed_web_search_tells_neither_key_nor_address(serper, tmp_path):
    Serper.down = True
    secret = serper.replace("http://", "http://user:pass-word@") + "/search?api_key=sesame"
    asking = WebSearch(secret, "key-1", tmp_path)
    with pytest.raises(ServingError, match=r"web search at http://127\.0\.0\.1:\d+ failed: HTTP 500") as told:
        asking.search(["q"], 5)
    assert not any(part in str(told.value) for part in ("sesame", "pass-word", "key-1", "/search"))
    asking.close()
