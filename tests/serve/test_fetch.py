"""What fetching a web address promises: the public internet alone, and never for long."""

import socket
import ssl
import threading
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from foveal.serve.fetch import fetch, is_public
from foveal.serve.limits import RequestError, ServerLimits

LIMITS = ServerLimits(image_bytes=1000, fetch_seconds=2, redirects=3)


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946", "64:ff9b::808:808"],
)
def test_public_addresses_are_public(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.9.1", "0.0.0.0", "10.0.0.1", "172.16.5.4", "192.168.1.1",
        "169.254.169.254", "100.64.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1",
        "255.255.255.255", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fec0::1", "ff02::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::", "2001:db8::1", "2001:0:4136:e378:8000:63bf:80ff:fffe",
        "::7f00:1", "::ffff:0:7f00:1", "64:ff9b:1::7f00:1", "fd00:ec2::254", "168.63.129.16",
    ],
)  # fmt: skip
def test_addresses_of_inner_networks_are_not_even_when_hidden_in_others(address):
    assert not is_public(address)


def write_certificate(file, name):
    """A key and a certificate that it signs itself, for a name."""
    key = ec.generate_private_key(ec.SECP256R1())
    named = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(named, named, key.public_key(), 1)
        .not_valid_before(now - timedelta(1))
        .not_valid_after(now + timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    file.write_bytes(key.private_bytes(pem, form, plain) + made.public_bytes(pem))


@contextmanager
def web(answer, secure=None):
    """A web server whose every GET is answered by a function of (handler, path)."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            answer(self, self.path)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if secure:
        server.socket = secure.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def send(handler, body=b"", status=200, **headers):
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


def anywhere(address):
    return True


def test_what_lies_at_an_address_is_fetched_through_redirects():
    def answer(handler, path):
        if path == "/there":
            send(handler, b"the picture")
        else:
            send(handler, status=302, Location="/there")

    with web(answer) as url:
        assert fetch(f"{url}/here", LIMITS, anywhere) == b"the picture"


def test_loopback_is_refused_before_a_connection_is_made():
    def answer(handler, path):
        raise AssertionError("nobody was to come")

    with (
        web(answer) as url,
        pytest.raises(RequestError, match="not on the public internet") as caught,
    ):
        fetch(url, LIMITS)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "host",
    [
        "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "localhost", "[::1]",
        "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "0", "me@127.0.0.1", "169.254.169.254",
    ],
)  # fmt: skip
def test_an_inner_address_is_refused_however_it_is_written(host, monkeypatch):
    connected = []
    monkeypatch.setattr(socket.socket, "connect", lambda _, place: connected.append(place))
    with pytest.raises(RequestError) as caught:
        fetch(f"http://{host}/a.png", LIMITS)
    assert caught.value.status == 400
    assert connected == []


def test_a_redirect_to_an_inner_address_is_refused():
    visited = []

    def answer(handler, path):
        visited.append(path)
        send(handler, status=302, Location=f"http://127.0.0.2:{handler.server.server_port}/secret")

    with web(answer) as url, pytest.raises(RequestError, match="not on the public internet"):
        fetch(f"{url}/start", LIMITS, lambda address: address == "127.0.0.1")
    assert visited == ["/start"]


@pytest.mark.parametrize("place", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://x/"])
def test_a_redirect_to_another_kind_of_address_is_refused(place):
    def answer(handler, _):
        send(handler, status=302, Location=place)

    with web(answer) as url, pytest.raises(RequestError) as caught:
        fetch(url, LIMITS, anywhere)
    assert "root:" not in caught.value.message


def test_a_name_that_resolves_elsewhere_a_moment_later_gains_nothing(monkeypatch):
    """The one lookup decides: its address is checked, and that address is connected to."""
    lookups, connected = [], []

    def resolve(host, port, **_):
        lookups.append(host)
        address = "93.184.216.34" if len(lookups) == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    def note(self, place):
        connected.append(place)
        raise ConnectionRefusedError("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket.socket, "connect", note)
    with pytest.raises(RequestError, match="cannot be fetched"):
        fetch("http://rebinding.example/a.png", LIMITS)
    assert (lookups, connected) == (["rebinding.example"], [("93.184.216.34", 80)])


def test_one_inner_address_among_public_ones_is_enough_to_refuse(monkeypatch):
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80))
        for address in ("93.184.216.34", "10.0.0.1")
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(RequestError, match="not on the public internet"):
        fetch("http://both.example/a.png", LIMITS)


@pytest.mark.parametrize("bears", ["pictures.example", "others.example"])
def test_a_secure_server_must_prove_the_name_not_the_address(bears, tmp_path, monkeypatch):
    place, secure = tmp_path / "pem", ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    write_certificate(place, bears)
    secure.load_cert_chain(place)
    asked = []
    secure.sni_callback = lambda _, name, __: asked.append(name)
    monkeypatch.setenv("SSL_CERT_FILE", str(place))
    look_up = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda _, *at, **how: look_up("127.0.0.1", *at, **how)
    )
    with web(lambda handler, _: send(handler, b"proven"), secure) as url:
        named = url.replace("http://127.0.0.1", "https://pictures.example")
        if bears == "pictures.example":
            assert fetch(named, LIMITS, anywhere) == b"proven"
        else:
            with pytest.raises(RequestError, match="certificate verify failed"):
                fetch(named, LIMITS, anywhere)
    assert asked == ["pictures.example"]


def test_a_proxy_of_the_environment_is_not_asked(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with web(lambda handler, _: send(handler, b"direct")) as url:
        assert fetch(url, LIMITS, anywhere) == b"direct"


def test_what_a_redirect_says_besides_is_not_read():
    def answer(handler, path):
        if path == "/there":
            return send(handler, b"the picture")
        handler.send_response(302)
        handler.send_header("Location", "/there")
        handler.end_headers()
        with suppress(OSError):
            while True:  # would fill the memory until the time is over
                handler.wfile.write(bytes(2**16))

    with web(answer) as url:
        assert fetch(f"{url}/here", LIMITS, anywhere) == b"the picture"


def test_endless_redirects_end():
    def answer(handler, path):
        send(handler, status=302, Location=path + "x")

    with web(answer) as url, pytest.raises(RequestError, match="redirect"):
        fetch(f"{url}/a", LIMITS, anywhere)


def test_no_more_is_read_than_a_picture_may_have():
    with web(lambda handler, _: send(handler, b"x" * 100_000)) as url:
        assert len(fetch(url, LIMITS, anywhere)) == LIMITS.image_bytes + 1


def test_an_error_of_the_other_server_is_told():
    def answer(handler, _):
        send(handler, status=404)

    with web(answer) as url, pytest.raises(RequestError, match="answered with status 404"):
        fetch(url, LIMITS, anywhere)


@pytest.mark.parametrize("where", ["headers", "body"])
def test_a_server_that_drips_is_cut_off_in_time(where):
    def drip(handler, _):
        if where == "body":
            handler.send_response(200)
            handler.end_headers()
        try:
            for _ in range(200):
                handler.wfile.write(b"x")
                handler.wfile.flush()
                time.sleep(0.05)
        except OSError:
            pass

    limits = ServerLimits(fetch_seconds=0.5)
    began = time.monotonic()
    with web(drip) as url, pytest.raises(RequestError, match=r"longer than 0\.5 seconds"):
        fetch(url, limits, anywhere)
    assert time.monotonic() - began < 5
