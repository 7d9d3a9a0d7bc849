"""One process of the control plane: its listeners, its operator, and how it starts and stops."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
from collections.abc import AsyncIterator, Generator
from dataclasses import replace
from pathlib import Path
from typing import Literal

from alembic.util import CommandError
from sqlalchemy.exc import DBAPIError

from api.control import ControlPlane, limits
from api.data_folder import CannotStart, make_folder, only_one, write_whole
from api.domain.decide import Rules
from api.domain.outcome import Backoff
from api.inputs import Resolver
from api.leftovers import sweep, sweeping
from api.listening import Server, listen, url_of
from api.main import create_app, create_health_app, create_worker_app
from api.operator.cluster import Cluster
from api.operator.kube_api import KubeApi, NoCluster, connect
from api.operator.kubernetes import KubernetesCluster
from api.operator.leader import Leader
from api.operator.local import LocalCluster
from api.operator.namespaces import Namespaces
from api.operator.reconciler import Operator
from api.operator.site import Bucket, Site, load_worker_pod
from api.settings import BadSettings, Settings
from api.store import installation, keys
from api.store.database import DEFAULT_PROJECT, Database
from api.store.migrate import migrate
from api.store.trouble import Trouble, Unavailable, trouble, words
from api.stores import sentence
from worker.storage.failures import StorageFailure

# Jobs that are worked on at once where the work is mostly to wait for an API server.
_AT_ONCE = 100
# In pods: what they have of a store in a bucket.
_SCRATCH = "/scratch"
# Seconds between two looks whether the database takes changes by now.
_PATIENCE = 1.0
Role = Literal["all", "api", "operator"]
log = logging.getLogger(__name__)


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
            stack.enter_context(only_one(settings.data / "lock"))
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
        servers: list[Server] = []
        if role in ("all", "api"):
            public, port = await listen(create_app(control), settings, settings.host, settings.port, tasks)
            servers.append(public)
            workers, worker_port = await listen(
                create_worker_app(control), settings, settings.worker_host, settings.worker_port, tasks
            )
            servers.append(workers)
            url, worker_url = url_of(settings.host, port), url_of(settings.worker_host, worker_port)
            write_whole(settings.worker_url_file, worker_url)
            tasks.append(asyncio.create_task(control.streams.run(), name="streams"))
        elif settings.health_port is not None:
            health, _ = await listen(create_health_app(control), settings, settings.host, settings.health_port, tasks)
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
        # What is there now stays. To look it all through stopped every answer for a tenth of a second, again and again.
        gc.collect()
        gc.freeze()
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
