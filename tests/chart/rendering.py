"""What the chart and the manifests render to, as plain objects."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.build import built, program

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "rlhf-operator"
VALUES = Path(__file__).parent / "values"
NAMESPACE, JOBS = "rlhf-system", "rlhf"
Manifest = dict[str, Any]
# What Helm says of its own work, and kustomize has no use for.
_LABELS = ("app.kubernetes.io/managed-by", "app.kubernetes.io/version", "helm.sh/chart")
_ANNOTATIONS = ("helm.sh/resource-policy", "checksum/worker-pod")
_HASH = re.compile(r"-[2456789bcdfghkmt]{10}$")


class Refused(Exception):
    """What Helm said when it did not render."""


def helm(*arguments: str) -> str:
    """Run Helm where no cluster is. Raises Refused."""
    assert built(), "python -m tests.cluster build"
    environment = {**os.environ, "KUBECONFIG": os.devnull}
    done = subprocess.run(
        [program("helm"), *arguments], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    if done.returncode:
        raise Refused(done.stderr.strip())
    return done.stdout


def chart(
    *settings: str, values: str | None = None, release: str = "rlhf", namespace: str = NAMESPACE
) -> list[Manifest]:
    """The chart's objects; `settings` are as after `--set`. Raises Refused."""
    given = [part for setting in settings for part in ("--set-json", setting)]
    if values is not None:
        given = ["--values", str(VALUES / f"{values}.yaml"), *given]
    said = helm("template", release, str(CHART), "--namespace", namespace, *given)
    return [made for made in yaml.safe_load_all(said) if made]


def installed(objects: list[Manifest]) -> list[Manifest]:
    """Those that stay: what hooks make comes and goes."""
    return [made for made in objects if "helm.sh/hook" not in made["metadata"].get("annotations", {})]


def overlay(name: str) -> list[Manifest]:
    """A kustomize overlay's objects."""
    return kustomized(f"overlays/{name}")


def kustomized(name: str) -> list[Manifest]:
    """What a folder of the manifests makes."""
    folder = ROOT / "manifests" / name
    done = subprocess.run(
        [program("kubectl"), "kustomize", str(folder)], capture_output=True, text=True, check=True, timeout=120
    )
    return list(yaml.safe_load_all(done.stdout))


def identity(made: Manifest) -> str:
    """`Kind namespace/name`."""
    meta = made["metadata"]
    return f"{made['kind']} {meta.get('namespace', '')}/{meta['name']}"


def plain(made: Manifest) -> Manifest:
    """An object without what Helm or kustomize says of itself, and with what has no order in order."""
    found: Manifest = _ordered(made)
    found["metadata"]["name"] = _HASH.sub("", found["metadata"]["name"])
    for meta in _metadata(found):
        meta["labels"] = {key: value for key, value in meta.get("labels", {}).items() if key not in _LABELS}
        given = {key: value for key, value in meta.get("annotations", {}).items() if key not in _ANNOTATIONS}
        meta.pop("annotations", None)
        if given:
            meta["annotations"] = given
    for volume in pod_of(found).get("volumes", []):
        if "configMap" in volume:
            volume["configMap"]["name"] = _HASH.sub("", volume["configMap"]["name"])
    if found["kind"] == "ConfigMap":
        found["data"] = {name: yaml.safe_load(text) for name, text in found["data"].items()}
    return found


def pod_of(made: Manifest) -> Manifest:
    """The spec of an object's pods; empty for one that has none."""
    if made["kind"] == "Pod":
        return made["spec"]
    return made.get("spec", {}).get("template", {}).get("spec", {}) if isinstance(made.get("spec"), dict) else {}


def containers(made: Manifest) -> list[Manifest]:
    """All containers of an object's pods."""
    spec = pod_of(made)
    return [*spec.get("initContainers", []), *spec.get("containers", [])]


def _metadata(made: Manifest) -> list[Manifest]:
    inner = made.get("spec", {}).get("template", {}) if pod_of(made) else {}
    return [made["metadata"], *([inner["metadata"]] if "metadata" in inner else [])]


def _ordered(value: Any) -> Any:
    """Lists of things with names, by these: variables, volumes and mounts have no order."""
    if isinstance(value, dict):
        return {key: _ordered(inner) for key, inner in value.items()}
    if isinstance(value, list):
        inner = [_ordered(each) for each in value]
        if inner and all(isinstance(each, dict) and "mountPath" in each for each in inner):
            return sorted(inner, key=lambda each: each["mountPath"])
        if inner and all(isinstance(each, dict) and "name" in each for each in inner):
            return sorted(inner, key=lambda each: each["name"])
        return inner
    return value
