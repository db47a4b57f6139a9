"""Headers that keep browsers from doing more than our page needs, and the page itself."""

import base64
import re
from hashlib import sha256
from importlib.resources import files

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class SafeHeaders:
    """Adds what every answer bears."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and its answer back with more headers."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in ALWAYS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, send_with_headers)


def read_page() -> tuple[str, str]:
    """Read the page, and the policy under which a browser runs its own script and no other."""
    page = files("foveal.serve").joinpath("page.html").read_text(encoding="utf-8")
    scripts = " ".join(_hashes("script", page))
    styles = " ".join(_hashes("style", page))
    policy = (
        f"default-src 'none'; script-src {scripts}; style-src {styles}; img-src blob: data:; "
        "media-src blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return page, policy


def _hashes(tag: str, page: str) -> list[str]:
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    digests = [base64.b64encode(sha256(text.encode()).digest()).decode() for text in found]
    return [f"'sha256-{digest}'" for digest in digests]
