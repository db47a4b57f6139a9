"""A web address -> its bytes, if it lies on the public internet.

A server that fetches what strangers name must not become their way into its own network. So a
connection resolves its name once, looks at the addresses, and goes to one of those that it has
looked at: neither a redirect nor a name that resolves differently a moment later gets around it.
"""

import http.client
import ipaddress
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from foveal.serve.problems import RequestError
from foveal.serve.requests.limits import ServerLimits

NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""Addresses that carry an IPv4 address in their last 32 bits."""

INNER = frozenset({ipaddress.ip_address("168.63.129.16")})
"""Public by their number and yet a machine's own host: Azure's, which also holds its secrets."""

Allowed = Callable[[str], bool]
"""Numeric address -> whether to connect to it."""


def is_public(address: str) -> bool:
    """Tell whether an address is of the public internet, also where it hides another one."""
    one = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(one, ipaddress.IPv6Address):
        inner = one.ipv4_mapped or one.sixtofour or (one.teredo[1] if one.teredo else None)
        if one in NAT64:
            inner = ipaddress.IPv4Address(int(one) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if one.is_site_local or one.is_reserved:  # such as IPv4 addresses in retired disguises
            return False
    return one.is_global and not one.is_multicast and one not in INNER


class _NotPublicError(OSError):
    """A name leads to an address that we do not connect to."""


def connect(host: str, port: int, timeout: float, allowed: Allowed) -> socket.socket:
    """Open a connection to a name, if every address that it resolves to is allowed.

    Raises:
        OSError: it cannot be reached, or may not be.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    if not found or not all(allowed(str(place[0])) for *_, place in found):
        raise _NotPublicError(f"{host} is not on the public internet")
    family, kind, protocol, _, place = found[0]
    connection = socket.socket(family, kind, protocol)
    try:
        connection.settimeout(timeout)
        connection.connect(place)
    except BaseException:
        connection.close()
        raise
    return connection


def fetch(url: str, limits: ServerLimits, allowed: Allowed = is_public) -> bytes:
    """Fetch a web address.

    Args:
        url: http or https.
        limits: of the endpoint.
        allowed: decides over numeric addresses.

    Raises:
        RequestError: it is not there, not public, too slow or too large.
    """
    deadline = _Deadline(limits.fetch_seconds)
    try:
        with (
            deadline,
            _opener(limits, allowed, deadline).open(url, timeout=limits.fetch_seconds) as answer,
        ):
            data: bytes = answer.read(limits.picture_bytes + 1)
    except Exception as error:  # strangers' servers make http.client raise whatever it has
        raise _problem_of(url, error, deadline, limits) from error
    if deadline.passed:
        raise _too_slow(url, limits)
    return data


class _Deadline:
    """Shuts the connections that are open when the time is over, however slowly they drip."""

    def __init__(self, seconds: float) -> None:
        self.passed = False
        self._connections: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._shut)
        self._timer.daemon = True

    def __enter__(self) -> "_Deadline":
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        for connection in self._connections:
            connection.close()

    def watch(self, connection: socket.socket) -> None:
        self._connections.append(connection)
        if self.passed:
            raise TimeoutError

    def _shut(self) -> None:
        self.passed = True
        for connection in self._connections:
            with suppress(OSError):  # it may have closed by itself
                connection.shutdown(socket.SHUT_RDWR)


def _opener(
    limits: ServerLimits, allowed: Allowed, deadline: _Deadline
) -> urllib.request.OpenerDirector:
    """Build an opener of http and https alone: no proxies, no files, no ftp."""

    class Plain(http.client.HTTPConnection):
        def connect(self) -> None:
            self.sock = connect(self.host, self.port, limits.fetch_seconds, allowed)
            deadline.watch(self.sock)

    class Secure(http.client.HTTPSConnection):
        def connect(self) -> None:
            plain = connect(self.host, self.port, limits.fetch_seconds, allowed)
            deadline.watch(plain)
            context = ssl.create_default_context()
            self.sock = context.wrap_socket(plain, server_hostname=self.host)
            deadline.watch(self.sock)

    class PlainHandler(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Plain, req)

    class SecureHandler(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Secure, req)

    class Redirects(urllib.request.HTTPRedirectHandler):
        max_redirections = limits.redirects

    opener = urllib.request.OpenerDirector()
    handlers: list[Any] = [
        PlainHandler(),
        SecureHandler(),
        Redirects(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
    ]
    for handler in handlers:
        opener.add_handler(handler)
    opener.addheaders = [("User-Agent", "foveal"), ("Accept", "image/*, video/*")]
    return opener


def _problem_of(
    url: str, error: Exception, deadline: _Deadline, limits: ServerLimits
) -> RequestError:
    reason = getattr(error, "reason", error)
    if isinstance(error, urllib.error.HTTPError):
        error.close()  # it is the answer, too
        if 300 <= error.code < 400:
            most = limits.redirects
            return RequestError(
                400,
                f"{url}: redirected more than {most} times, or to another kind of address",
                "web_address_failed",
            )
        return RequestError(400, f"{url}: answered with status {error.code}", "web_address_failed")
    if deadline.passed or isinstance(reason, TimeoutError):
        return _too_slow(url, limits)
    if isinstance(reason, _NotPublicError):
        return RequestError(400, f"{url}: {reason}; we fetch public addresses alone", "bad_url")
    words = " ".join(str(getattr(reason, "strerror", None) or reason).split())
    return RequestError(400, f"{url}: cannot be fetched ({words[:200]})", "web_address_failed")


def _too_slow(url: str, limits: ServerLimits) -> RequestError:
    return RequestError(
        400, f"{url}: took longer than {limits.fetch_seconds:g} seconds", "web_address_failed"
    )
