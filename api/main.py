"""The two applications: the public one, and the workers'. Both stand on one `ControlPlane`."""

from fastapi import APIRouter, FastAPI
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api import errors, openapi
from api.control import ControlPlane
from api.crowd import Crowd
from api.routes import (
    access,
    estimate,
    explain,
    files,
    health,
    history,
    intents,
    jobs,
    models,
    pipelines,
    samples,
    worker,
)
from api.settings import is_loopback
from api.telemetry import Counting

VERSION = "0.1.0"


class LoopbackOnly:
    """Answers only those who ask for this machine by its own names.

    Without it, any web page could read and post here: by DNS rebinding (`Host`), or by a plain form (`Origin`).
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        asked, origin = headers.get("host", ""), headers.get("origin")
        if not is_loopback(_host(asked)):
            refusal = errors.response(400, "the Host header names another machine; ask for 127.0.0.1 or localhost")
        # The port, too: what else listens on this machine may show pages of others.
        elif origin is not None and origin.partition("://")[2].lower() != asked.lower():
            refusal = errors.response(403, "a web page of another origin may not call this control plane")
        else:
            await self.app(scope, receive, send)
            return
        await refusal(scope, receive, send)


def create_app(control: ControlPlane) -> FastAPI:
    """The public API."""
    app = FastAPI(title="rlhf-operator", version=VERSION, redoc_url=None)
    first = (jobs.router, intents.router, explain.router, history.router, samples.router)
    _fill(
        app,
        control,
        *first,
        files.router,
        models.router,
        estimate.router,
        health.router,
        pipelines.router,
        *access.routers,
    )
    keyed = control.settings.auth == "keys"
    openapi.install(app, for_pages=not keyed, keyed=keyed)
    if not keyed:
        app.add_middleware(LoopbackOnly)
    app.add_middleware(Counting, telemetry=control.telemetry)
    return app


def create_worker_app(control: ControlPlane) -> FastAPI:
    """The workers' API, which may be reached from other machines."""
    app = FastAPI(title="rlhf-operator, for workers", version=VERSION, docs_url=None, redoc_url=None, openapi_url=None)
    _fill(app, control, worker.router)
    # Shown to nobody; the tests make requests from it.
    openapi.install(app, for_pages=False)
    app.add_middleware(Crowd, telemetry=control.telemetry)
    app.add_middleware(Counting, telemetry=control.telemetry)
    return app


def create_health_app(control: ControlPlane) -> FastAPI:
    """What an operator without an API says of itself."""
    app = FastAPI(title="rlhf-operator, its health", version=VERSION, docs_url=None, redoc_url=None, openapi_url=None)
    _fill(app, control, health.router)
    openapi.install(app, for_pages=False)
    if control.settings.auth != "keys":
        app.add_middleware(LoopbackOnly)
    return app


def _fill(app: FastAPI, control: ControlPlane, *routers: APIRouter) -> None:
    app.state.control = control
    app.state.routes = [route for router in routers for route in router.routes]
    for router in routers:
        app.include_router(router)
    errors.install(app)


def _host(netloc: str) -> str:
    """The name in `name:port`, with an IPv6 address's brackets taken off."""
    if netloc.startswith("["):
        return netloc[1:].partition("]")[0].lower()
    return netloc.partition(":")[0].lower()
