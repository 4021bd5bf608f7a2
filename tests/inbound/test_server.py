"""Listening: several addresses, several processes on one port, and what is said when an address cannot be had."""

import asyncio
import errno
import os
import socket
from contextlib import ExitStack

import pytest

from tests.inbound import recording
from tests.inbound.recording import MESSAGE
from tests.peers.client import Client, send


async def test_several_addresses_of_both_families(serve):
    listening = await serve(listen=["127.0.0.1:0", "127.0.0.2:0", "[::1]:0"])
    addresses = listening.server.addresses
    assert [host for host, _ in addresses] == ["127.0.0.1", "127.0.0.2", "::1"]
    for host, port in addresses:
        answer = await send(host, port, b"a@sender.test", [b"b@here.test"], MESSAGE)
        assert answer.code == 250
    assert [session.client for session in listening.reception.sessions] == ["127.0.0.1", "127.0.0.1", "::1"]


async def test_workers_share_a_port(serve, tmp_path):
    first = await serve()
    second = await recording.listen(tmp_path / "second", listen=[f"127.0.0.1:{first.port}"])
    try:
        for _ in range(40):
            await send("127.0.0.1", first.port, b"a@sender.test", [b"b@here.test"], MESSAGE)
        assert first.messages
        assert second.messages
    finally:
        await recording.stop(second)


async def test_an_address_that_is_taken_is_named(serve):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = "127.0.0.1:{1}".format(*taken.getsockname())
        with pytest.raises(OSError, match=f"cannot listen on {address}: "):
            await serve(listen=["127.0.0.1:0", address])


async def test_an_address_that_is_not_ours_is_named(serve):
    with pytest.raises(OSError, match=r"cannot listen on 192\.0\.2\.1:25: "):
        await serve(listen=["192.0.2.1:25"])


async def test_a_client_of_a_full_server_is_told(serve):
    listening = await serve(connections=1)
    async with Client("127.0.0.1", listening.port) as inside:
        assert inside.greeting.code == 220
        async with Client("127.0.0.1", listening.port) as outside:
            assert str(outside.greeting).startswith("421 4.3.2")
            assert await outside.closed()
        assert (await inside.say(b"NOOP\r\n")).code == 250


async def test_the_address_is_named_that_there_are_no_descriptors_for(serve, monkeypatch):
    left, dup = [None] * 3, socket.socket.dup

    def few(listener):
        if not left:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        left.pop()
        return dup(listener)

    monkeypatch.setattr(socket.socket, "dup", few)
    with pytest.raises(OSError, match=r"cannot listen on 127\.0\.0\.1:[1-9][0-9]*: Too many open files"):
        await serve()


async def test_who_comes_does_not_wait_for_a_turn_of_the_loop_each(serve):
    listening = await serve()
    with ExitStack() as clients:
        for _ in range(64):  # the system answers them without us
            clients.enter_context(socket.create_connection(("127.0.0.1", listening.port)))
        turns = 0
        async with asyncio.timeout(10):
            while listening.server.sessions < 64:
                await asyncio.sleep(0)
                turns += 1
    assert turns < 32


async def test_after_the_end_nobody_is_listened_to(serve):
    listening = await serve()
    listening.server.stop_accepting()
    await asyncio.sleep(0)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", listening.port))
