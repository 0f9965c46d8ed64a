"""Whether npm's failure tells of the way to its registry, where tests are skipped, or of something else."""

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.loopback import Reader, Writer, self_signed
from tests.support.node import RegistryUnreachableError, npm_install

PACKAGE = '{"private": true, "dependencies": {"express": "5.3.0"}}'
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"


async def install_from(
    directory: Path, scheme: str, answer: Callable[[Writer], None], tls: ssl.SSLContext | None = None
) -> None:
    """npm, with a registry on loopback that answers any request like this."""
    (directory / "package.json").write_text(PACKAGE)

    async def handle(reader: Reader, writer: Writer) -> None:
        await reader.read(1000)
        answer(writer)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    async with server:
        port = server.sockets[0].getsockname()[1]
        await asyncio.to_thread(npm_install, directory, f"{scheme}://127.0.0.1:{port}/")


async def test_a_certificate_that_is_not_trusted_is_named(tmp_path: Path) -> None:
    tls, _ = self_signed(tmp_path)
    with pytest.raises(RegistryUnreachableError, match=r"can't be reached: .*SELF_SIGNED_CERT"):
        await install_from(tmp_path, "https", lambda writer: writer.write(NOT_FOUND), tls)


async def test_a_server_that_does_not_speak_tls_is_named(tmp_path: Path) -> None:
    with pytest.raises(RegistryUnreachableError, match="can't be reached: ERR_SSL_"):
        await install_from(tmp_path, "https", lambda writer: writer.write(NOT_FOUND))


async def test_a_connection_that_ends_within_the_handshake_is_named(tmp_path: Path) -> None:
    with pytest.raises(RegistryUnreachableError, match="can't be reached: ECONNRESET"):
        await install_from(tmp_path, "https", lambda writer: writer.transport.abort())


async def test_a_registry_that_lacks_a_package_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="E404"):
        await install_from(tmp_path, "http", lambda writer: writer.write(NOT_FOUND))
