"""A chat client before servers that cannot be asked, that send without end, and that tell of their release."""

import asyncio
import ssl
import threading
import zlib
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from infra.chat import ChatLostError, ChatRefusedError, ChatSettings, Completion, Message
from infra.chat_client import MAX_REPLY_BYTES, ChatClient

QUESTION = (Message(role="user", content="how are you?"),)
IN_PROCESS = ChatSettings(base_url="http://127.0.0.1:9/v1", model="asked-judge", max_attempts=2, first_wait_s=0.0)
DAY = timedelta(days=1)
COMPLETION = '{"choices": [{"message": {"content": "hello"}}]}'


def test_the_release_is_told_where_it_is_asked_for_and_asked_for_nowhere_else() -> None:
    asked: list[str] = []

    async def handle(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        told = {"/version": "<html>", "/api/version": '{"version": "0.9\\n.1"}', "/v1/chat/completions": COMPLETION}
        return httpx.Response(200, text=told[request.url.path])

    async def run() -> str:
        async with ChatClient(IN_PROCESS, httpx.MockTransport(handle)) as client:
            await client.complete(QUESTION)
            assert asked == ["/v1/chat/completions"]
            return await client.server_version()

    assert asyncio.run(run()) == "0.9 .1"


def test_a_server_that_drips_its_release_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def drip() -> AsyncIterator[bytes]:
        while True:
            await asyncio.sleep(0.02)
            yield b" "

    async def handle(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=drip())

    async def run() -> str:
        async with ChatClient(IN_PROCESS, httpx.MockTransport(handle)) as client:
            return await asyncio.wait_for(client.server_version(), 5)

    monkeypatch.setattr("infra.chat_client._VERSION_S", 0.2)
    assert asyncio.run(run()) == ""


@pytest.mark.parametrize("encoding", ["", "gzip"])
def test_a_body_without_end_is_left_and_counts_as_no_reply(encoding: str) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        pack = zlib.compressobj(wbits=31)
        while True:
            part = b"x" * 2**16
            sent += len(part)
            yield pack.compress(part) + pack.flush(zlib.Z_SYNC_FLUSH) if encoding else part

    async def handle(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"content-encoding": encoding or "identity"}, content=endless())

    async def run() -> None:
        async with ChatClient(IN_PROCESS, httpx.MockTransport(handle)) as client:
            await client.complete(QUESTION)

    with pytest.raises(ChatLostError, match=r"in 2 attempts; the last: .*the reply goes on after 4 MiB"):
        asyncio.run(run())
    assert sent <= 2 * (MAX_REPLY_BYTES + 2**17)


def test_a_packed_reply_is_read() -> None:
    async def handle(_: httpx.Request) -> httpx.Response:
        packed = zlib.compress(COMPLETION.encode(), wbits=31)
        return httpx.Response(200, headers={"content-encoding": "gzip"}, content=packed)

    async def run() -> Completion:
        async with ChatClient(IN_PROCESS, httpx.MockTransport(handle)) as client:
            return await client.complete(QUESTION)

    assert asyncio.run(run()).text == "hello"


@pytest.fixture
def untrusted(tmp_path: Path) -> Iterator[str]:
    """The address of a server whose certificate is signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + DAY)
    pem = made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    pem += key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "server.pem").write_bytes(pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        server.handle_error = lambda *_: None
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"https://localhost:{server.server_address[1]}/v1"
        server.shutdown()


def told_at_once(settings: ChatSettings, transport: httpx.AsyncBaseTransport | None = None) -> str:
    """What is refused without another attempt, which would come after minutes."""

    async def run() -> None:
        async with ChatClient(settings, transport) as client:
            await asyncio.wait_for(client.complete(QUESTION), 20)

    settings = settings.model_copy(update={"max_attempts": 9, "first_wait_s": 600.0, "max_wait_s": 600.0})
    with pytest.raises(ChatRefusedError) as caught:
        asyncio.run(run())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_certificate_that_nobody_here_trusts_is_told_at_once(untrusted: str) -> None:
    told = told_at_once(ChatSettings(base_url=untrusted, model="m"))
    assert "CERTIFICATE_VERIFY_FAILED" in told
    assert "SSL_CERT_FILE" in told


def test_tls_where_there_is_none_is_told_at_once(chat_server: Any) -> None:
    told = told_at_once(ChatSettings(base_url=chat_server.url.replace("http:", "https:"), model="m"))
    assert "begins with http://" in told


@pytest.mark.parametrize("error", [httpx.UnsupportedProtocol, httpx.LocalProtocolError])
def test_a_request_that_cannot_be_sent_is_told_at_once(error: type[httpx.RequestError]) -> None:
    async def handle(_: httpx.Request) -> httpx.Response:
        raise error("no such thing")

    told = told_at_once(IN_PROCESS, httpx.MockTransport(handle))
    assert "no such thing; mend the address" in told
