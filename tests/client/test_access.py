"""Keys and projects by the commands of docs/access.md, as they stand but for places."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from client import Client, Problem
from tests.client.conftest import ROOT, Shell, rehearsal
from tests.e2e.plane import ControlPlane


class KeyedShell(Shell):
    """`rlhf` with a key."""

    def __init__(self, url: str, key: str) -> None:
        super().__init__(url)
        self.key = key

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "RLHF_API_KEY": self.key}


@pytest.fixture(scope="module")
def plane_with_key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ControlPlane, str]]:
    data = tmp_path_factory.mktemp("keyed")
    made = subprocess.run(
        [sys.executable, "-m", "api", "--data", str(data), "create-key", "--admin"],
        env={**os.environ, "AUTH": "keys"}, capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    running = ControlPlane(data, AUTH="keys", LOCAL_JOBS="4")
    try:
        yield running.start(), made.stdout.strip()
    finally:
        running.close()


def test_an_admin_makes_a_project_and_lets_somebody_in(plane_with_key: tuple[ControlPlane, str]) -> None:
    plane, key = plane_with_key
    admin = KeyedShell(plane.url, key)
    assert admin("whoami").out == "first, admin of default\n"
    script = re.search(
        r"^```bash\n(rlhf projects.*?)^```", (ROOT / "docs/access.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert script
    said = {}
    for line in script[1].splitlines():
        command = line.partition("#")[0].split()
        said[command[1]] = done = admin(*command[1:])
        assert done.code == 0, done.err
        if command[1:3] == ["keys", "create"]:
            alice = KeyedShell(plane.url, done.out.strip())
    assert "research" in admin("projects", "list").out
    assert "8 active jobs, 32 accelerators" in admin("projects", "list").out
    assert "key.create" in said["audit"].out
    assert alice("whoami").out == "alice, editor of research\n"

    made = Client(plane.url, key=alice.key).jobs.create(rehearsal("hers"))
    assert "hers" in alice("list").out
    assert "hers" not in admin("list").out
    assert Client(plane.url, key=key, project="research").jobs.get(made.id).name == "hers"
    assert made.id in admin("audit", made.id).out
    refused = alice("keys", "list")
    assert (refused.code, "admin" in refused.err) == (1, True)

    [hers] = [entry for entry in admin("keys", "list", "--json").json if entry["name"] == "alice"]
    assert admin("keys", "revoke", hers["id"]).code == 0
    shut_out = alice("list")
    assert shut_out.code == 1
    assert "revoked" in shut_out.err
    assert "revoked" in admin("keys", "list").out


def test_without_a_key_one_is_told_where_to_put_it(plane_with_key: tuple[ControlPlane, str]) -> None:
    refused = Shell(plane_with_key[0].url)("list")
    assert refused.code == 1
    assert "RLHF_API_KEY" in refused.err
    with pytest.raises(Problem, match="send an API key"):
        Client(plane_with_key[0].url).jobs.newest()


def test_a_key_for_a_project_that_is_not_there_is_refused_with_a_sentence(tmp_path: Path) -> None:
    refused = subprocess.run(
        [sys.executable, "-m", "api", "--data", str(tmp_path), "create-key", "--project", "none"],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "there is no project 'none'" in refused.stderr
