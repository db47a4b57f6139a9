"""A hub of data sets on this machine alone, as far as `HfFileSystem` asks it, with one data set."""

import json
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest

DATASET = "someone/shelf"


@dataclass
class LoopbackHub:
    """A data set, and what it was asked for."""

    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """Each request: method, path and the range of bytes."""

    failures: int = 0
    """Requests for content that are still to fail."""

    refused: bool = False

    def fetched_bytes(self) -> int:
        spans = [span.removeprefix("bytes=").split("-") for _, _, span in self.asked if span]
        return sum(int(last) - int(first) + 1 for first, last in spans)

    def entries(self, folder: str):
        """List a folder, as the hub does."""
        for name, content in self.files.items():
            if name.rpartition("/")[0] == folder:
                oid = sha1(content).hexdigest()
                yield {"type": "file", "path": name, "size": len(content), "oid": oid}


def _handler(hub: LoopbackHub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_GET(self):
            path = unquote(urlsplit(self.path).path)
            hub.asked.append((self.command, path, self.headers.get("Range") or ""))
            if hub.refused:
                return self.answer(401, b"{}", **{"X-Error-Code": "GatedRepo"})
            api, resolve = f"/api/datasets/{DATASET}", f"/datasets/{DATASET}/resolve/main/"
            if path.startswith(f"{api}/tree/main"):
                entries = [*hub.entries(path.removeprefix(f"{api}/tree/main").strip("/"))]
                if not entries:
                    return self.answer(404, b"{}", **{"X-Error-Code": "EntryNotFound"})
                return self.answer(200, json.dumps(entries).encode())
            if path in (api, f"{api}/revision/main"):
                return self.answer(200, json.dumps({"id": DATASET, "sha": "0" * 40}).encode())
            if path.startswith(resolve) and (name := path.removeprefix(resolve)) in hub.files:
                if hub.failures:
                    hub.failures -= 1
                    return self.answer(503, b"")
                first, last = self.headers["Range"].removeprefix("bytes=").split("-")
                return self.answer(206, hub.files[name][int(first) : int(last) + 1])
            return self.answer(404, b"{}", **{"X-Error-Code": "RepoNotFound"})

        def answer(self, status, content, **headers):
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

    return Handler


@contextmanager
def loopback_hub(patch: pytest.MonkeyPatch):
    """Serve a data set; the hub's own package is told of it as by `HF_ENDPOINT`."""
    import huggingface_hub
    import huggingface_hub.constants

    hub = LoopbackHub()
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub)) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        address = f"http://127.0.0.1:{server.server_port}"
        constants = huggingface_hub.constants
        patch.setattr(constants, "ENDPOINT", address)
        template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        huggingface_hub.HfFileSystem.clear_instance_cache()
        huggingface_hub.close_session()
        try:
            yield hub
        finally:
            huggingface_hub.HfFileSystem.clear_instance_cache()
            huggingface_hub.close_session()
            server.shutdown()
            thread.join()
