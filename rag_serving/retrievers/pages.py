"""Pages of strangers: fetched from public addresses only, within a time and a size.

A name is resolved once per connection. What was resolved is judged, and the connection goes to that very address: a name that points
elsewhere a moment later gains nothing. Host header, TLS server name and certificate check keep the name.
"""

from __future__ import annotations

import codecs
import ipaddress
import logging
import re
import socket
import time
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import httpcore
import httpx

log = logging.getLogger("rag_serving")

MAX_PAGE_BYTES = 2_000_000
MAX_REDIRECTS = 3
_CHARSETS = re.compile(  # the WHATWG's list, as Python names them
    r"ascii|utf-8(-sig)?|utf-16(-[lb]e)?|iso8859-\d+|cp(437|850|866|874|949|932|125\d)|koi8-[ru]|mac-(roman|cyrillic)|tis-620|big5(hkscs)?"
    r"|gb2312|gbk|gb18030|euc_(jp|kr)|shift_jis|iso2022_jp"
)

_IPv4, _IPv6 = ipaddress.IPv4Address, ipaddress.IPv6Address
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_COMPATIBLE = ipaddress.IPv6Network("::/96")


class PrivateAddressError(Exception):
    """A name that leads to an address which is not public."""


def public(address: str) -> bool:
    """Whether an IP address is one of the public internet. One that carries an IPv4 address is judged by that."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    carried = list(_carried(ip)) if isinstance(ip, _IPv6) else []
    if carried:
        return all(public(str(inner)) for inner in carried)
    odd = ip.is_multicast or ip.is_reserved or (isinstance(ip, _IPv6) and ip.is_site_local)
    return ip.is_global and not odd


def _carried(ip: ipaddress.IPv6Address) -> Iterator[ipaddress.IPv4Address]:
    if ip.ipv4_mapped is not None:
        yield ip.ipv4_mapped
    elif ip.sixtofour is not None:
        yield ip.sixtofour
    elif ip.teredo is not None:
        yield from ip.teredo  # its server and its client
    elif ip in _NAT64 or ip in _COMPATIBLE:
        yield _IPv4(int(ip) & 0xFFFFFFFF)


class _Backend(httpcore.NetworkBackend):
    """Connects to addresses that were judged; nothing on its connections goes on after `deadline` (`time.monotonic()`)."""

    def __init__(self, deadline: float, private: bool) -> None:
        self._deadline, self._private, self._sync = deadline, private, httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError("the name cannot be resolved") from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if not self._private and not all(map(public, addresses)):
            raise PrivateAddressError
        failure: Exception = httpcore.ConnectError("the name has no address")
        for address in addresses:
            try:
                left = _left(self._deadline, httpcore.ConnectTimeout)
                return _Stream(self._sync.connect_tcp(address, port, left, local_address, socket_options), self._deadline)
            except httpcore.ConnectError as error:
                failure = error
        raise failure


class _Stream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream, self._deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._deadline, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._deadline, httpcore.WriteTimeout))

    def start_tls(self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None) -> _Stream:
        left = _left(self._deadline, httpcore.ConnectTimeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, left), self._deadline)

    def close(self) -> None:
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(deadline: float, late: type[httpcore.TimeoutException]) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise late("the page took too long")
    return left


class _Transport(httpx.HTTPTransport):
    def __init__(self, ssl_context: Any, backend: httpcore.NetworkBackend) -> None:
        # httpx's own constructor takes no backend; the rest of its transport is as it is
        self._pool = httpcore.ConnectionPool(ssl_context=ssl_context, network_backend=backend)


class PageReader:
    """Reads pages; may be called by many threads. Directly, whatever proxy the environment names: a proxy would resolve names itself."""

    def __init__(self, timeout_s: float, private: bool = False) -> None:
        """`timeout_s` seconds are for a whole page, redirects included. `private`: pages of one's own network are read too."""
        self._timeout_s, self._private, self._ssl = timeout_s, private, httpx.create_ssl_context()

    def read(self, link: str) -> str:
        """Return the page's main text; empty where there is none to be had."""
        import trafilatura

        try:
            html = self._html(link)
            return (trafilatura.extract(html) or "") if html else ""
        except PrivateAddressError:
            log.warning("a search result of a private address was not fetched")
        except (httpx.HTTPError, httpx.InvalidURL, zlib.error, LookupError, ValueError, OSError) as error:
            log.info("a page could not be read: %s", type(error).__name__)
        return ""

    def _html(self, link: str) -> str | None:
        backend = _Backend(time.monotonic() + self._timeout_s, self._private)
        headers = {"User-Agent": "rag-serving", "Accept-Encoding": "gzip"}
        with httpx.Client(transport=_Transport(self._ssl, backend), headers=headers) as client:
            for _ in range(MAX_REDIRECTS + 1):
                with client.stream("GET", link) as response:
                    if response.next_request is not None:
                        link = str(response.next_request.url)
                        continue
                    if response.status_code != 200 or "html" not in response.headers.get("content-type", ""):
                        return None
                    body = _body(response)
                    return None if body is None else body.decode(_charset(response), "replace")
        return None


def _charset(response: httpx.Response) -> str:
    """Return the encoding that a page names, if it is one that pages are written in: some of Python's take time that grows with the square
    of the length (punycode), or decode something else than text."""
    try:
        found = codecs.lookup(response.charset_encoding or "utf-8").name
    except (LookupError, ValueError):
        return "utf-8"
    return found if _CHARSETS.fullmatch(found) else "utf-8"


def _as_it_is(piece: bytes, _limit: int) -> bytes:
    return piece


def _body(response: httpx.Response) -> bytes | None:
    """Return the body, unpacked no further than the limit; None beyond it, or if it is packed in a way not asked for."""
    packing = response.headers.get("content-encoding", "identity").strip().lower()
    if packing not in ("identity", "gzip"):
        return None
    unpack = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress if packing == "gzip" else _as_it_is
    body = bytearray()
    for piece in response.iter_raw():
        body += unpack(piece, MAX_PAGE_BYTES + 1 - len(body))
        if len(body) > MAX_PAGE_BYTES:
            return None
    return bytes(body)
