"""A web address -> its bytes, if it lies on the public internet.

A server that fetches what strangers name must not become their way into its own network. So a
connection resolves its name once, looks at the addresses, and goes to one of those that it has
looked at: neither a redirect nor a name that resolves differently a moment later gets around it.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Callable
from contextlib import aclosing
from functools import partial

import anyio.to_thread
import httpx2

from foveal.errors import one_line
from foveal.serve.limits import RequestError, ServerLimits

NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""Addresses that carry an IPv4 address in their last 32 bits."""

INNER = frozenset({ipaddress.ip_address("168.63.129.16")})
"""Public by their number and yet a machine's own host: Azure's, which also holds its secrets."""

HEADERS = {"User-Agent": "foveal", "Accept": "image/*, video/*", "Accept-Encoding": "identity"}

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


class _CheckedTransport(httpx2.AsyncHTTPTransport):
    """Connects to a name by an address that was looked at."""

    def __init__(self, allowed: Allowed) -> None:
        super().__init__(verify=ssl.create_default_context(), trust_env=False)
        self._allowed = allowed

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        name = request.url.host
        look_up = partial(socket.getaddrinfo, name, request.url.port, type=socket.SOCK_STREAM)
        found = await anyio.to_thread.run_sync(look_up, abandon_on_cancel=True)
        addresses = [str(place[0]) for *_, place in found]
        if not addresses or not all(map(self._allowed, addresses)):
            raise _NotPublicError(f"{name} is not on the public internet")
        pinned = httpx2.Request(
            request.method,
            request.url.copy_with(host=addresses[0]),
            headers=request.headers,  # which name the host that was asked for
            extensions=request.extensions | {"sni_hostname": name},  # whose certificate is checked
        )
        return await super().handle_async_request(pinned)


def fetch(url: str, limits: ServerLimits, allowed: Allowed = is_public) -> bytes:
    """Fetch a web address; of what is longer than an image may be, one byte more than that.

    Args:
        url: http or https.
        limits: of the endpoint.
        allowed: decides over numeric addresses.

    Raises:
        RequestError: it is not there, not public or too slow.
    """
    code = "web_address_failed"
    try:
        return asyncio.run(_fetch(url, limits, allowed))
    except RequestError:
        raise
    except TimeoutError:
        reason = f"took longer than {limits.fetch_seconds:g} seconds"
    except _NotPublicError as error:
        code, reason = "bad_url", f"{error}; we fetch public addresses alone"
    except Exception as error:  # strangers' servers make libraries raise whatever they have
        words = one_line(getattr(error, "strerror", None) or error)
        reason = f"cannot be fetched ({words[:200]})"
    raise RequestError(400, f"{url}: {reason}", code)


async def _fetch(url: str, limits: ServerLimits, allowed: Allowed) -> bytes:
    """Follow redirects by hand: the library would read all that they say besides."""
    transport = _CheckedTransport(allowed)
    async with (
        asyncio.timeout(limits.fetch_seconds),
        httpx2.AsyncClient(transport=transport, headers=HEADERS, timeout=None) as client,
    ):
        request: httpx2.Request | None = client.build_request("GET", url)
        for _ in range(limits.redirects + 1):
            if request is None or request.url.scheme not in ("http", "https"):
                break
            answer = await client.send(request, stream=True)
            async with aclosing(answer):
                if answer.is_success:
                    return await _read(answer, limits.image_bytes + 1)
                if not answer.is_redirect:
                    reason = f"answered with status {answer.status_code}"
                    raise RequestError(400, f"{url}: {reason}", "web_address_failed")
                request = answer.next_request
    most = limits.redirects
    reason = f"redirected more than {most} times, or to another kind of address"
    raise RequestError(400, f"{url}: {reason}", "web_address_failed")


async def _read(answer: httpx2.Response, most: int) -> bytes:
    data = bytearray()
    async for chunk in answer.aiter_raw():
        data += chunk
        if len(data) >= most:
            break
    return bytes(data[:most])
