"""The listeners of a control plane: servers that accept connections before anybody is told of them."""

import asyncio
import contextlib
import socket
from collections.abc import Generator

import uvicorn
from starlette.types import ASGIApp

from api.data_folder import CannotStart
from api.patience import protocol, room
from api.settings import Settings

# Bytes that the system holds of what is written to a connection and not sent yet.
_UNSENT = 128 * 1024


class Server(uvicorn.Server):
    """Leaves signals to us: two servers run in one process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


async def listen(
    app: ASGIApp, settings: Settings, host: str, port: int, tasks: list[asyncio.Task[None]]
) -> tuple[Server, int]:
    """Starts a server, and gives it with its port once it accepts connections."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Connections have it from their listener: by default the system would hold megabytes for each that is not read.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise CannotStart(f"cannot listen on {host}:{port}: {error.strerror}; choose another with --port") from None
    config = uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_grace)),
        timeout_keep_alive=75,
        http=protocol(settings.client_timeout, room(settings.max_connections, listeners=2)),
        # Nothing here speaks it, and whoever did would be out of that protocol's sight.
        ws="none",
    )
    server = Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]), name=f"listener of {host}:{port}")
    tasks.append(task)
    while not server.started:
        if task.done():
            await task
            raise CannotStart(f"the listener on {host}:{port} ended before it began")
        await asyncio.sleep(0.005)
    return server, listener.getsockname()[1]


def url_of(host: str, port: int) -> str:
    # Who listens everywhere is reached, from here, by loopback.
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"
