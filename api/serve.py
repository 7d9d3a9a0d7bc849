"""One process of the control plane: its listeners, its operator, and how it starts and stops."""

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Generator
from dataclasses import replace
from pathlib import Path
from typing import IO, Literal

import uvicorn
from alembic.util import CommandError
from sqlalchemy.exc import DBAPIError
from starlette.types import ASGIApp

from api.control import ControlPlane, limits
from api.domain.decide import Rules
from api.domain.outcome import Backoff
from api.inputs import Resolver
from api.leftovers import sweep, sweeping
from api.main import create_app, create_health_app, create_worker_app
from api.operator.cluster import Cluster
from api.operator.kube_api import KubeApi, NoCluster, connect
from api.operator.kubernetes import KubernetesCluster
from api.operator.leader import Leader
from api.operator.local import LocalCluster
from api.operator.namespaces import Namespaces
from api.operator.reconciler import Operator
from api.operator.site import Bucket, Site, load_worker_pod
from api.patience import protocol, room
from api.settings import BadSettings, Settings
from api.store import installation, keys
from api.store.database import DEFAULT_PROJECT, Database
from api.store.migrate import migrate
from api.store.trouble import Trouble, Unavailable, trouble, words
from api.stores import sentence
from worker.storage.failures import StorageFailure

# Jobs that are worked on at once where the work is mostly to wait for an API server.
_AT_ONCE = 100
# Bytes that the system holds of what is written to a connection and not sent yet.
_UNSENT = 128 * 1024
# In pods: what they have of a store in a bucket.
_SCRATCH = "/scratch"
# Seconds between two looks whether the database takes changes by now.
_PATIENCE = 1.0
Role = Literal["all", "api", "operator"]
log = logging.getLogger(__name__)


class CannotStart(Exception):
    """Why the control plane does not start, in a sentence."""


class _Server(uvicorn.Server):
    """Leaves signals to us: two servers run in one process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


class Running:
    """A control plane that serves. `stop` makes `done` end."""

    def __init__(self, control: ControlPlane, url: str | None, worker_url: str | None) -> None:
        self.control, self.url, self.worker_url = control, url, worker_url
        self.stopping = asyncio.Event()

    def stop(self) -> None:
        """Asks it to end; may be called again."""
        self.control.streams.close()
        self.stopping.set()


@contextlib.asynccontextmanager
async def running(settings: Settings, role: Role = "all") -> AsyncIterator[Running]:
    """A control plane that is ready; stopped at the end. Workers run on. Raises CannotStart."""
    make_folder(settings.data)
    async with contextlib.AsyncExitStack() as stack:
        # The operator of one machine takes every attempt in the data folder for its own, whatever database it uses.
        if settings.sqlite or (role in ("all", "operator") and settings.cluster == "local"):
            stack.enter_context(_only_one(settings.data / "lock"))
        control = ControlPlane.of(settings, operates=role == "operator")
        stack.push_async_callback(control.database.dispose)
        stack.callback(control.store.close)
        stack.push_async_callback(control.wakeups.close)
        await open_database(control.database)
        try:
            await control.store.run(control.store.prepare)
        except StorageFailure as error:
            raise CannotStart(f"STORE: {sentence(error)}") from None
        except OSError as error:
            raise CannotStart(f"the store {settings.store_path} cannot be written: {error.strerror}") from None
        with usable(control.database):
            await _let_in(control)
            with contextlib.suppress(StorageFailure):  # it is swept later
                await sweep(control.store, control.database)
            control = await _placed(control)
            settled = role == "api" or await _settled(control)
        url = worker_url = None
        tasks: list[asyncio.Task[None]] = []
        servers: list[_Server] = []
        if role in ("all", "api"):
            public, port = await _listen(create_app(control), settings, settings.host, settings.port, tasks)
            servers.append(public)
            workers, worker_port = await _listen(
                create_worker_app(control), settings, settings.worker_host, settings.worker_port, tasks
            )
            servers.append(workers)
            url, worker_url = _url(settings.host, port), _url(settings.worker_host, worker_port)
            _write(settings.worker_url_file, worker_url)
            tasks.append(asyncio.create_task(control.streams.run(), name="streams"))
        elif settings.health_port is not None:
            health, _ = await _listen(create_health_app(control), settings, settings.host, settings.health_port, tasks)
            servers.append(health)
        this = Running(control, url, worker_url)
        if role in ("all", "api"):
            sweeper = sweeping(control.store, control.database, this.stopping)
            tasks.append(asyncio.create_task(sweeper, name="sweep"))
        if role in ("all", "operator"):
            database = control.database
            if role == "all" and not settings.sqlite:
                # Connections of its own: a lease is not lost to people's requests.
                database = Database(settings.database, limits(settings, operates=True))
                stack.push_async_callback(database.dispose)
            operating = _operate(control, database, this.stopping, settled)
            tasks.append(asyncio.create_task(operating, name="operator"))
        for task in tasks:
            # A part that dies takes the process with it: whoever started it starts it again, whole.
            task.add_done_callback(lambda task: this.stop())
        try:
            yield this
        finally:
            this.stop()
            for server in servers:
                server.should_exit = True
            _, late = await asyncio.wait(tasks, timeout=settings.shutdown_grace + 5)
            for task in late:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result


async def _placed(control: ControlPlane) -> ControlPlane:
    """The control plane with its place on Kubernetes, where it has one. Raises CannotStart."""
    settings = control.settings
    if settings.worker_pod is None or settings.cluster != "kubernetes":
        return control
    try:
        pod = load_worker_pod(settings.worker_pod)
    except BadSettings as error:
        raise CannotStart(str(error)) from None
    if settings.in_bucket:
        mount, url, claim = _SCRATCH, settings.store_url, None
    else:
        mount = settings.store_mount or str(settings.store_path)
        url, claim = Path(mount).as_uri(), settings.store_claim
    site = Site(
        namespace=settings.namespace,
        installation=await installation.name(control.database),
        worker_url=settings.worker_url,
        store_url=url,
        store_claim=claim,
        store_path=mount,
        pod=pod,
        bucket=Bucket.of(os.environ, secret=settings.store_secret, scratch=settings.scratch_size)
        if settings.in_bucket
        else None,
    )
    resolver = Resolver(settings, control.database, control.store, site)
    return replace(control, site=site, resolver=resolver)


async def open_database(database: Database) -> None:
    """Migrates the database. Raises CannotStart for one that is away, is no database, or does not let us in."""
    with usable(database):
        await migrate(database)


@contextlib.contextmanager
def usable(database: Database) -> Generator[None, None, None]:
    """What goes wrong with the database in it, as CannotStart."""
    try:
        yield
    except (DBAPIError, Unavailable, CommandError, OSError) as error:
        log.debug("the database cannot be used", exc_info=True)
        raise CannotStart(f"the database {database.url.render_as_string()} cannot be used: {words(error)}") from None


async def _settled(control: ControlPlane) -> bool:
    """Records where attempts run; False where the database takes no changes yet. Raises CannotStart."""
    place = "processes of one machine" if control.site is None else f"namespace {control.settings.namespace}"
    try:
        await installation.runs_at(control.database, place)
    except installation.Elsewhere as error:
        raise CannotStart(str(error)) from None
    except DBAPIError as error:
        if trouble(error) is not Trouble.READ_ONLY:
            raise
        return False
    return True


async def _let_in(control: ControlPlane) -> None:
    """Takes the admin's key from its file, where there is one. Raises CannotStart."""
    path = control.settings.admin_key_file
    if path is None:
        return
    try:
        key = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CannotStart(f"ADMIN_KEY_FILE: {path} cannot be read: {error}") from None
    if not keys.is_strong(key):
        raise CannotStart(
            f"ADMIN_KEY_FILE: {path} holds no key: write `{keys.PREFIX}` and at least 32 random letters and digits"
        )
    try:
        async with control.database.transaction() as session:
            await keys.take_from_file(session, key, DEFAULT_PROJECT)
    except DBAPIError as error:
        if trouble(error) is not Trouble.READ_ONLY:
            raise
        log.warning("ADMIN_KEY_FILE: the key that it held before is the one that counts: %s", trouble(error))


async def serve(settings: Settings, role: Role) -> None:
    """Runs until SIGTERM or SIGINT. Raises CannotStart."""
    loop = asyncio.get_running_loop()
    early = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, early.set)
    async with running(settings, role) as this:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, this.stop)
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        if early.is_set():
            return
        if this.url is not None:
            print(
                f"rlhf-operator listens on {this.url} (workers: {this.worker_url}, data: {settings.data})", flush=True
            )
        else:
            print(f"rlhf-operator's operator runs (data: {settings.data})", flush=True)
        await this.stopping.wait()
        log.info("stopping; workers run on")


async def _operate(control: ControlPlane, database: Database, stop: asyncio.Event, settled: bool) -> None:
    if not settled:
        log.warning("the operator waits: %s", Trouble.READ_ONLY)
    while not settled and not stop.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), _PATIENCE)
        # Away, too, by now: it is asked until it answers.
        with contextlib.suppress(DBAPIError, Unavailable):
            settled = await _settled(control)
    async with _cluster(control) as cluster:
        await _reconcile(control, database, cluster, stop)


@contextlib.asynccontextmanager
async def _cluster(control: ControlPlane) -> AsyncIterator[Cluster]:
    """What runs attempts, open until the end of the block. Raises CannotStart."""
    settings = control.settings
    if control.site is None:
        yield LocalCluster(settings.data, settings.store_url, settings.worker_url_file)
        return
    try:
        client = await connect(settings.kubeconfig)
    except NoCluster as error:
        raise CannotStart(str(error)) from None
    async with client, contextlib.AsyncExitStack() as stack:
        followed = {}
        for namespace in settings.for_attempts:
            site = replace(control.site, namespace=namespace)
            opened = KubernetesCluster.open(
                KubeApi(client, namespace), site, control.store, silence=settings.watch_silence
            )
            followed[namespace] = await stack.enter_async_context(opened)
        first = followed.pop(settings.namespace)
        yield Namespaces(first, followed) if followed else first


async def _reconcile(control: ControlPlane, database: Database, cluster: Cluster, stop: asyncio.Event) -> None:
    settings = control.settings
    operator = Operator(
        database=database,
        cluster=cluster,
        wakeups=control.wakeups,
        tokens=control.tokens,
        # With SQLite the data folder's lock says that no other control plane is up.
        leader=Leader(database, seconds=settings.lease, alone=settings.sqlite),
        store=control.store,
        # On Kubernetes, its scheduler and its queues give places.
        concurrency=16 if settings.cluster == "local" else _AT_ONCE,
        places=settings.local_jobs if settings.cluster == "local" else None,
        rules=Rules(Backoff(settings.back_off)),
    )
    control.pulse.watch(lambda: operator.alive)
    await operator.run(stop)


async def _listen(
    app: ASGIApp, settings: Settings, host: str, port: int, tasks: list[asyncio.Task[None]]
) -> tuple[_Server, int]:
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
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]), name=f"listener of {host}:{port}")
    tasks.append(task)
    while not server.started:
        if task.done():
            await task
            raise CannotStart(f"the listener on {host}:{port} ended before it began")
        await asyncio.sleep(0.005)
    return server, listener.getsockname()[1]


@contextlib.contextmanager
def _only_one(path: Path) -> Generator[None, None, None]:
    """Holds the data folder's lock. Raises CannotStart, and names who holds it."""
    try:
        opened = path.open("a+")
    except OSError as error:
        raise CannotStart(
            f"the data folder {path.parent} cannot be used: its file `lock` cannot be opened: {error.strerror}"
        ) from None
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise CannotStart(
                f"the data folder {path.parent} is in use by process {holder}; stop that one, or use another --data"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def make_folder(folder: Path) -> None:
    """Makes the data folder, where it is missing. Raises CannotStart."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotStart(f"the data folder {folder} cannot be made: {error.strerror}") from None


def _write(path: Path, url: str) -> None:
    """Workers may read at any moment: they see the old address or the new one, whole."""
    temporary = path.with_name(f".tmp-{path.name}")
    file: IO[str]
    with temporary.open("w") as file:
        file.write(url)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _url(host: str, port: int) -> str:
    # Who listens everywhere is reached, from here, by loopback.
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"
