"""The connection between launchers: strangers get nothing by it and harm nothing, and its end is noticed."""

import asyncio
import contextlib
import hmac
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.process.attempts import until
from tests.process.cluster import MakeSpread, SpreadAttempt, free_port
from tests.process.listener import TOKEN, Listener
from worker import link, nodes
from worker.link import Link, Stranger, greet, introduce

SECRET = b"a token"


@pytest.fixture
def spread(tmp_path: Path) -> Iterator[MakeSpread]:
    made: list[SpreadAttempt] = []

    def make(number: int = 1, **given: Any) -> SpreadAttempt:
        made.append(SpreadAttempt(tmp_path, number, **given))
        return made[-1]

    yield make
    for one in made:
        one.kill_group()


def knock(port: int) -> socket.socket:
    """A connection to the leader, once it listens."""

    def connected() -> socket.socket | None:
        with contextlib.suppress(ConnectionRefusedError):
            return socket.create_connection(("127.0.0.1", port), timeout=10)
        return None

    found = until(connected)
    assert found is not None
    return found


def accepted(server: socket.socket) -> socket.socket:
    """The next connection to a server, whose other end has some seconds for each word."""
    server.settimeout(30)
    connection, _ = server.accept()
    connection.settimeout(10)
    return connection


def hung_up_on(connection: socket.socket) -> bytes:
    """What still comes before the other end hangs up."""
    got = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(4096):
            got += piece
    return got


def test_strangers_get_nothing_and_keep_nobody_out(listener: Listener, spread: MakeSpread) -> None:
    job = spread(stage={"steps": 20})
    leader, follower = job.nodes
    leader.start()
    strangers = [knock(job.port) for _ in range(3)]
    greetings = [one.recv(4096) for one in strangers]
    assert len(set(greetings)) == 3
    assert {len(greeting) for greeting in greetings} == {36}
    strangers[0].sendall(b"GET / HTTP/1.1\r\nHost: here\r\nAccept: everything there is, and more of it\r\n\r\n")
    strangers[1].sendall(secrets.token_bytes(32) + (1).to_bytes(4, "big") + secrets.token_bytes(32))
    strangers[2].sendall(b"\xff" * 100_000)
    assert [hung_up_on(one) for one in strangers] == [b"", b"", b""]
    # Half-open ones, more than the leader bears at a time: the oldest go.
    silent = [knock(job.port) for _ in range(nodes._STRANGERS + 20)]
    for one in silent[:20]:
        hung_up_on(one)
    follower.start()
    assert job.wait() == [0, 0]
    for one in silent:
        hung_up_on(one)
        one.close()


def test_once_all_nodes_are_there_nobody_else_is_let_in(listener: Listener, spread: MakeSpread) -> None:
    job = spread(stage={"steps": 100_000}).start()
    early = knock(job.port)
    until(lambda: listener.step > 0)
    assert len(hung_up_on(early)) in (0, 36)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", job.port), timeout=10)


async def given_up(port: int, node: int) -> None:
    """A connection that has all proofs, and that its node gives up before it is here."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await introduce(reader, writer, f"{TOKEN}1".encode(), node)
    writer.transport.abort()


def test_a_connection_that_its_node_gave_up_is_not_the_one_that_counts(listener: Listener, spread: MakeSpread) -> None:
    job = spread(stage={"steps": 20})
    leader, follower = job.nodes
    leader.start()
    knock(job.port).close()
    asyncio.run(given_up(job.port, 1))
    follower.start()
    assert job.wait() == [0, 0]
    assert listener.losses.keys() == set(range(1, 21))


def test_a_node_with_another_token_is_not_let_in(listener: Listener, spread: MakeSpread) -> None:
    job = spread(stage={"steps": 20})
    leader, follower = job.nodes
    follower.token.write_text(f"{TOKEN}2")
    leader.start()
    follower.start()
    until(follower.ranks)
    # Several tries.
    ends = time.monotonic() + 3
    until(lambda: time.monotonic() > ends)
    assert "node 1 is here" not in leader.printed()
    assert listener.seen == []
    follower.token.write_text(f"{TOKEN}1")
    assert job.wait() == [0, 0]


def test_a_false_leader_learns_nothing_that_lets_it_in(listener: Listener, spread: MakeSpread) -> None:
    job = spread(stage={"steps": 20})
    leader, follower = job.nodes
    with socket.create_server(("127.0.0.1", job.port)) as false:
        follower.start()
        heard = []
        # It answers with what it heard, and with words of its own.
        for answer in (lambda said: said[-32:], lambda said: secrets.token_bytes(32), lambda said: b""):
            connection = accepted(false)
            with connection:
                connection.sendall(link._MAGIC + bytes(32))
                said = b""
                while len(said) < 68:
                    said += connection.recv(4096)
                connection.sendall(answer(said))
                connection.shutdown(socket.SHUT_WR)
                assert hung_up_on(connection) == b""
                heard.append(said)
        connection = accepted(false)
        with connection:
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            assert hung_up_on(connection) == b""
    assert len({said[:32] for said in heard}) == 3
    assert not any(TOKEN.encode() in said for said in heard)
    leader.start()
    # What it heard does not open the true leader's door.
    stranger = knock(job.port)
    stranger.recv(4096)
    stranger.sendall(heard[0])
    assert hung_up_on(stranger) == b""
    assert job.wait() == [0, 0]


Ends = tuple[Link, Link, Callable[[bytes], None]]


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    """The leader's end of a link, the follower's, and what puts bytes on the wire to the leader."""
    port = free_port()
    greeted: asyncio.Queue[Link] = asyncio.Queue()

    async def welcome(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, made = await greet(reader, writer, SECRET, lambda node: node == 1)
        await greeted.put(made)

    server = await asyncio.start_server(welcome, "127.0.0.1", port)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    follower = await introduce(reader, writer, SECRET, 1)
    yield await greeted.get(), follower, writer.write
    writer.close()
    server.close()


async def test_messages_go_both_ways_in_order(ends: Ends) -> None:
    leader, follower, _ = ends
    up: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    down: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    listening = [
        asyncio.create_task(leader.listen(up.put_nowait)),
        asyncio.create_task(follower.listen(down.put_nowait)),
    ]
    for number in range(100):
        follower.send({"up": number, "ballast": "x" * (number * 1000)})
        leader.send({"down": number})
    assert [(await up.get())["up"] for _ in range(100)] == list(range(100))
    assert [(await down.get())["down"] for _ in range(100)] == list(range(100))
    follower.close()
    assert await listening[0] == "its launcher's connection broke"
    await listening[1]


async def test_a_message_that_was_slipped_in_or_sent_again_breaks_the_link(ends: Ends) -> None:
    leader, follower, put = ends
    heard: list[Any] = []
    written: list[bytes] = []
    follower._writer.write = lambda content: written.append(bytes(content))  # type: ignore[method-assign,func-returns-value]
    follower.send({"rank": 1})
    put(written[0])
    put(written[0])
    assert "changed" in await leader.listen(heard.append)
    assert heard == [{"rank": 1}]


async def test_a_message_of_any_length_is_not_waited_for(ends: Ends) -> None:
    leader, _, put = ends
    put((2**32 - 1).to_bytes(4, "big") + hmac.digest(b"", b"", "sha256"))
    assert "none of ours" in await leader.listen(lambda message: None)


async def test_an_end_that_falls_silent_is_taken_for_lost(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "BEAT", 0.05)
    leader, _, _ = ends
    began = time.monotonic()
    assert "nothing was heard of it" in await leader.listen(lambda message: None)
    assert time.monotonic() - began > link.SILENT_BEATS * 0.05


async def test_ends_that_have_nothing_to_say_live_on(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "BEAT", 0.02)
    listening = [asyncio.create_task(end.listen(lambda message: None)) for end in ends[:2]]
    done, _ = await asyncio.wait(listening, timeout=1.5)
    assert not done
    ends[1].close()
    await asyncio.wait(listening)


async def test_who_was_frozen_itself_does_not_take_the_other_for_lost(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "BEAT", 0.05)
    listening = [asyncio.create_task(end.listen(lambda message: None)) for end in ends[:2]]
    await asyncio.sleep(0.1)
    time.sleep(link.SILENT_BEATS * 0.05 * 3)  # noqa: ASYNC251 - the whole process stands still
    done, _ = await asyncio.wait(listening, timeout=0.3)
    assert not done
    ends[1].close()
    await asyncio.wait(listening)


@pytest.mark.parametrize("token", [b"another token", b""])
async def test_neither_end_takes_one_without_the_token(token: bytes) -> None:
    refused: asyncio.Queue[BaseException] = asyncio.Queue()

    async def welcome(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await greet(reader, writer, SECRET, lambda node: True)
        except Stranger as error:
            await refused.put(error)
        writer.close()

    port = free_port()
    async with await asyncio.start_server(welcome, "127.0.0.1", port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with pytest.raises(EOFError):
            await introduce(reader, writer, token, 1)
        assert "token" in str(await refused.get())
        writer.close()
