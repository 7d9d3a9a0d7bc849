"""Which reward services a spec may name: workers call them, from inside the network that they run in."""

from urllib.parse import SplitResult, urlsplit

import httpx

from api.settings import Settings, is_loopback
from worker.contract.problem import Problem
from worker.contract.rewards import Reward, ServiceTerm
from worker.contract.spec import JobSpec

_PORTS = {"http": 80, "https": 443}


def unfit_services(spec: JobSpec, settings: Settings) -> list[Problem]:
    """The services of a spec's reward that are not allowed here."""
    reward: Reward | None = getattr(spec.stage, "reward", None)
    found = []
    for number, term in enumerate(reward.terms if reward is not None else []):
        if not isinstance(term, ServiceTerm):
            continue
        path = f"stage.reward.terms.{number}.service"
        try:
            httpx.URL(term.service)
        except httpx.InvalidURL as error:  # what workers call it by is stricter than the spec
            found.append(Problem(path, f"is no URL: {error}"))
            continue
        if not allowed(term.service, settings):
            named = ", ".join(settings.allowed_services) or "none"
            found.append(Problem(path, f"is not a service that workers may call; allowed (ALLOWED_SERVICES): {named}"))
    return found


def allowed(url: str, settings: Settings) -> bool:
    """Whether workers may call this URL: it lies under an allowed one, or on this machine where that is the cluster."""
    wanted = urlsplit(url)
    if settings.cluster == "local" and wanted.hostname and is_loopback(wanted.hostname):
        return True
    return any(_under(wanted, urlsplit(prefix)) for prefix in settings.allowed_services)


def _under(wanted: SplitResult, prefix: SplitResult) -> bool:
    folder = prefix.path.rstrip("/")
    # `..` is taken away by some servers and by some clients: nobody needs it here.
    inside = wanted.path == folder or (wanted.path.startswith(f"{folder}/") and ".." not in wanted.path.split("/"))
    return _place(wanted) == _place(prefix) and inside


def _place(url: SplitResult) -> tuple[str, str | None, int | None]:
    return url.scheme, url.hostname, url.port or _PORTS.get(url.scheme)
