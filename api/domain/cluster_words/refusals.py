"""What the API server refuses: a quota, a level of security, a right."""

import re
from collections.abc import Iterator

from api.domain.cluster_words.hint import ADMIN_FILE, Hint, less
from api.domain.wording import listed
from worker.contract.spec import JobSpec
from worker.contract.values import quantity

_EXCEEDED = re.compile(
    r"exceeded quota: (?P<name>[^,]+), requested: (?P<requested>.+?), used: (?P<used>.+?), "
    r"limited: (?P<limited>[\w./=,-]+)"
)
_UNSAID = re.compile(r"failed quota: (?P<name>[^:]+): must specify (?P<what>.+)")
_CLASS = re.compile(r"no PriorityClass with name (\S+) was found")


def quota(said: str, spec: JobSpec) -> Iterator[Hint]:
    for found in _EXCEEDED.finditer(said):
        wanted, limits = _amounts(found["requested"]), _amounts(found["limited"])
        never = [name for name in wanted if _more(wanted[name], limits.get(name))]
        for name in never:
            yield Hint(
                f"It asks for {name}={wanted[name]} at once, and the quota {found['name']} has {limits[name]} in all: "
                f"have it raised (`kubectl edit resourcequota {found['name']}`)."
            )
        if not never:
            yield Hint(
                f"It starts by itself when others give back {listed(wanted)}, or the quota {found['name']} is raised."
            )
        for name in wanted:
            yield from less(name, spec)
    for found in _UNSAID.finditer(said):
        what = found["what"]
        if "limits.memory" in what:
            yield Hint("The quota wants a limit of memory: say it, resources.memory.", "resources.memory=SIZE")
        if "limits.cpu" in what:
            yield Hint(
                f"The quota {found['name']} wants a limit of cores, which workers never have: take limits.cpu out of "
                "it, or set a default by a LimitRange."
            )


def refused(said: str, spec: JobSpec) -> Iterator[Hint]:
    if "violates PodSecurity" in said:
        yield Hint(
            "The namespace's Pod Security level refuses the pods, which keep to `restricted` by themselves: what "
            f"{ADMIN_FILE} adds (volumes, for one) does not."
        )
    if found := _CLASS.search(said):
        yield Hint(
            f"The cluster has no PriorityClass {found[1]}: `kubectl get priorityclasses` lists them; "
            "resources.pod.priority_class.",
            "resources.pod.priority_class=NAME",
        )
    if "cannot create resource" in said or "cannot get resource" in said or "cannot list resource" in said:
        yield Hint("The operator's account lacks a right: its administrator applies the operator's Role again.")
    if "Unauthorized" in said and "pull" not in said:
        yield Hint("The API server does not know the operator's account any more: renew its token or its kubeconfig.")


def _amounts(text: str) -> dict[str, str]:
    """`requests.cpu=2,pods=1`, taken apart."""
    return dict(entry.partition("=")[::2] for entry in text.split(",") if "=" in entry)


def _more(wanted: str, limit: str | None) -> bool:
    try:
        return limit is not None and quantity(wanted) > quantity(limit)
    except ValueError:
        return False
