"""What the control plane's image is made of, and what is in no layer of it."""

import re
from pathlib import PurePosixPath

from api.main import VERSION
from api.operator.site import WORKER_USER
from tests.images.builder import CANARY, Builder, Built
from tests.images.contents import contents

# A program by any of these names turns source code into something that runs.
COMPILERS = re.compile(
    r"(.*-)?(cc|c\+\+|gcc|g\+\+|cpp|clang|clang\+\+|tcc|ld|as|make|ninja|nvcc|rustc|cargo|go)(-?[\d.]+)?"
)
OF_PACKAGES = {"pip.conf", "pip.ini", ".netrc", ".pypirc", "uv.toml", "ca.crt"}


def test_what_was_built_before_is_taken_as_it_is(built_api: Built) -> None:
    written = built_api.archive.stat().st_ino
    again = Builder("api", lambda _: None).build()
    assert again == built_api
    assert again.archive.stat().st_ino == written


def test_each_layer_holds_what_changes_together(built_api: Built) -> None:
    with contents(built_api.archive) as image:
        _, user, dependencies, sources = image.layers
        found = {layer: [entry.path for entry in image.entries(layer)] for layer in (user, dependencies, sources)}
    assert PurePosixPath("/data") in found[user]
    assert {path.parts[1:3] for path in found[dependencies] if len(path.parts) > 2} == {("opt", "venv")}
    # Whoever has the release before pulls little more than this one.
    assert {path.parts[1] for path in found[sources] if len(path.parts) > 1} == {"app"}


def test_no_layer_holds_a_compiler_or_what_only_a_build_needs(built_api: Built) -> None:
    with contents(built_api.archive) as image:
        paths = [entry.path for entry in image.entries()]
    programs = [path for path in paths if path.parent.name in ("bin", "sbin") and COMPILERS.fullmatch(path.name)]
    assert not programs
    # The base brings its own; the environment needs none any more.
    assert not [path for path in paths if path.is_relative_to("/opt/venv") and path.name in ("pip", "setuptools")]
    assert not [path for path in paths if path.is_relative_to("/root/.cache") and path.name != ".cache"]
    ours = {path.relative_to("/app").parts[0] for path in paths if path.is_relative_to("/app") and path.name != "app"}
    assert ours == {"api", "client", "rlhf_operator.dist-info", "worker"}
    assert not [path for path in paths if path.is_relative_to("/app/worker") and path.name in ("stages", "run.py")]


def test_no_layer_tells_where_its_packages_came_from_or_by_which_password(built_api: Built) -> None:
    with contents(built_api.archive) as image:
        told = str(image.configuration)
        for entry in image.entries():
            assert entry.path.name not in OF_PACKAGES, entry.path
            assert CANARY.encode() not in entry.bytes, entry.path
    assert CANARY not in told
    assert "://" not in told


def test_all_is_compiled_and_any_user_may_read_it_and_change_nothing(built_api: Built) -> None:
    with contents(built_api.archive) as image:
        _, _, *ours = image.layers
        modes = {entry.path: entry.info for layer in ours for entry in image.entries(layer)}
    sources = {path for path in modes if path.suffix == ".py" and path.is_relative_to("/app")}
    assert len(sources) > 100
    for path in sources:
        assert path.parent / "__pycache__" / f"{path.stem}.cpython-311.pyc" in modes
    for path, info in modes.items():
        if not info.issym() and len(path.parts) > 2:
            wanted = 0o005 if info.isdir() else 0o004
            assert (info.mode & 0o027, info.mode & 0o005 & wanted, info.uid) in ((info.mode & 0o005, wanted, 0),), path


def test_it_is_described_as_what_it_is(built_api: Built) -> None:
    with contents(built_api.archive) as image:
        told = image.configuration["config"]
    assert told["User"] == f"{WORKER_USER}:{WORKER_USER}"
    assert told["Entrypoint"] == ["python", "-m", "api"]
    assert told["StopSignal"] == "SIGTERM"
    assert set(told["ExposedPorts"]) == {"8000/tcp", "8001/tcp"}
    assert "Volumes" not in told  # a pod without one for its data would keep them in its node's own folder, unseen
    assert told["Labels"]["org.opencontainers.image.title"] == "rlhf-operator"
    assert told["Labels"]["org.opencontainers.image.version"] == VERSION
