"""A kubelet that cannot pull the image, or not start the container."""

import re
from collections.abc import Iterator

from api.domain.cluster_words.hint import ADMIN_FILE, Hint
from api.domain.cluster_words.volumes import MISSING
from worker.contract.spec import JobSpec

_OWN_SECRET = re.compile(r"job-[a-z2-7]{12}-a[1-9][0-9]*")
_KEY = re.compile(r"couldn't find key (\S+) in (Secret|ConfigMap) (\S+)")
_IMAGE_NAME = re.compile(r'image "([^"]+)"')
_DENIED = re.compile(
    r"pull access denied|\b40[13]\b|unauthorized|authorization failed|authentication required|denied: |no basic auth",
    re.IGNORECASE,
)
_UNREACHABLE = ("no such host", "i/o timeout", "connection refused", "network is unreachable", "TLS handshake timeout",
                "context deadline exceeded", "no route to host")  # fmt: skip
_PULLS = ("pull", "ErrImage", "InvalidImageName", "parse image name", "inspect image")


def image(said: str, spec: JobSpec) -> Iterator[Hint]:
    if not any(word in said for word in _PULLS):
        return
    found = _IMAGE_NAME.search(said)
    image = f" {found[1]}" if found else ""
    if "InvalidImageName" in said or "couldn't parse image" in said or "invalid reference format" in said:
        yield Hint(f"The image's name is not well formed: `image` in {ADMIN_FILE}.")
    elif "ErrImageNeverPull" in said or "is not present with pull policy of Never" in said:
        yield Hint(f"The node does not have the image{image}, and may not pull it: `imagePullPolicy` in {ADMIN_FILE}.")
    elif "toomanyrequests" in said or "rate limit" in said:
        yield Hint(
            "The registry lets nobody pull so often: it is tried again; or pull with an account, `imagePullSecrets` in "
            f"{ADMIN_FILE}."
        )
    elif _DENIED.search(said):
        yield Hint(
            f"The registry does not give the image{image} to everybody, or has none of this name: `image` and "
            f"`imagePullSecrets` in {ADMIN_FILE}."
        )
    elif "x509:" in said or "http: server gave HTTP response to HTTPS client" in said:
        yield Hint("The nodes do not trust the registry's certificate: a matter of the nodes' container runtime.")
    elif any(word in said for word in _UNREACHABLE):
        yield Hint("The nodes do not reach the registry: its name, their DNS, or a proxy. It is tried again by itself.")
    elif "not found" in said or "manifest unknown" in said:
        yield Hint(f"The registry has no image{image}: push it, or name another, `image` in {ADMIN_FILE}.")
    else:
        yield Hint(f"The image is named by the administrator: `image` and `imagePullSecrets` in {ADMIN_FILE}.")


def start(said: str, spec: JobSpec) -> Iterator[Hint]:
    """A container that could not be created, or not started."""
    for kind, name in MISSING.findall(said):
        if _OWN_SECRET.fullmatch(name):
            continue  # it comes a moment after its Job
        yield Hint(
            f"There is no {kind.lower()} {name} in the job's namespace, and {ADMIN_FILE} names it: make it there."
        )
    for key, kind, name in _KEY.findall(said):
        yield Hint(f"The {kind} {name} has no key {key}, which {ADMIN_FILE} asks for: add it there.")
    if "could not start" in said or "RunContainerError" in said or "CreateContainerError" in said:
        if "exec format error" in said:
            yield Hint("The image is for another kind of processor than the nodes': build it for theirs.")
        elif "permission denied" in said:
            yield Hint(
                f"The workers' user may not run the image's command: `command` or `runAsUser` in {ADMIN_FILE}; or mend "
                "the image."
            )
        elif "no such file or directory" in said or "executable file not found" in said:
            yield Hint(
                f"The image does not have the command that is to be run: `command`, or `image`, in {ADMIN_FILE}."
            )
        elif "no command specified" in said:
            yield Hint(f"The image says no command: give one, `command` in {ADMIN_FILE}.")
    if "pod sandbox" in said:
        yield Hint(
            "The node cannot give the pod its network: `kubectl describe pod`, and the node's kubelet, say more."
        )
