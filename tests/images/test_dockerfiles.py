"""What the Dockerfiles say, and what is said of them."""

import re
import tomllib
from pathlib import Path

import pytest

from api.main import VERSION
from tests.images.builder import REPOSITORY

pytestmark = pytest.mark.quick
DOCKERFILES = [REPOSITORY / "api/Dockerfile", REPOSITORY / "worker/Dockerfile"]
_COMMAND = re.compile(r"^(?:docker|buildah) build (.*)$", re.MULTILINE)


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.parent.name)
def test_a_dockerfile_names_no_host_and_pins_its_base(file: Path) -> None:
    text = file.read_text()
    assert "://" not in text
    base = re.search(r"^ARG BASE=(\S+)$", text, re.MULTILINE)
    assert base and re.fullmatch(r"[a-z]+:3\.\d+\.\d+-slim-[a-z]+", base[1])
    # All stages are of the one base, or of each other.
    stages = set(re.findall(r"^FROM .* AS (\S+)$", text, re.MULTILINE))
    for source in re.findall(r"^FROM (\S+)", text, re.MULTILINE):
        assert source in {"${BASE}", "for-${ACCELERATOR}"} | stages


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.parent.name)
def test_an_image_bears_the_version_of_the_release(file: Path) -> None:
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nARG VERSION={version}\n" in file.read_text()
    assert version == VERSION


def test_the_commands_of_the_docs_name_what_the_dockerfiles_take() -> None:
    commands = _COMMAND.findall((REPOSITORY / "docs/images.md").read_text().replace("\\\n", " "))
    assert len(commands) >= 3
    for command in commands:
        (file,) = re.findall(r"-f (\S+)", command)
        text = (REPOSITORY / file).read_text()
        for argument in re.findall(r"--build-arg (\w+)=", command):
            assert re.search(rf"^ARG {argument}\b", text, re.MULTILINE), argument
        for secret in re.findall(r"--secret id=([\w.]+),", command):
            assert f"type=secret,id={secret}" in text, secret
