"""`rlhf manifest`: what a spec would be on Kubernetes, as YAML that every reader takes for the same."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from api.settings import Settings, load
from client import specfiles
from client.commands.manifest import as_yaml
from tests.api.conftest import plane_on
from tests.client.conftest import Shell
from tests.e2e.plane import ControlPlane

SPEC = (
    "stage: {type: rehearse, steps: 3}\nresources: {nodes: 2, pod: {env: {FACTOR: '1e3', ANSWER: 'y', NOTE: 'a: é'}}}\n"
)


@pytest.fixture
def spec(tmp_path: Path) -> str:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    return str(path)


@pytest.fixture
def on_kubernetes(tmp_path: Path) -> Settings:
    """Of a control plane that makes Jobs; its API needs no cluster to say which."""
    (tmp_path / "worker-pod.yaml").write_text("image: registry.example/worker:1\n")
    return load(
        data=tmp_path / "data",
        port=0,
        cluster="kubernetes",
        namespace="training",
        worker_pod=tmp_path / "worker-pod.yaml",
        worker_url="http://rlhf-workers.rlhf.svc:8001",
        store_claim="store",
    )


def test_on_one_machine_a_sentence_says_that_there_are_no_objects(rlhf: Shell, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("stage: {type: rehearse, steps: 3}\n")
    said = rlhf("manifest", str(path))
    assert (said.code, said.out) == (2, "")
    assert "runs jobs as processes of its machine, and creates no objects" in said.err


def test_a_spec_that_is_wrong_is_refused_as_it_would_be_when_submitted(
    rlhf: Shell, spec: str, plane: ControlPlane
) -> None:
    said = rlhf("manifest", spec)
    assert (said.code, said.out) == (2, "")
    assert "resources.nodes" in said.err
    assert "resources.pod" in said.err


async def test_it_prints_the_objects_as_documents_and_nothing_else(on_kubernetes: Settings, spec: str) -> None:
    async with plane_on(on_kubernetes) as plane:
        rlhf = Shell(str(plane.http.base_url))
        said = await asyncio.to_thread(rlhf, "manifest", spec)
        listed = await asyncio.to_thread(rlhf, "manifest", spec, "--json", "--set", "resources.nodes=3")
    assert (said.code, said.err) == (0, "")
    job, service, policy, secret = yaml.safe_load_all(said.out)
    assert [each["kind"] for each in (job, service, policy, secret)] == ["Job", "Service", "NetworkPolicy", "Secret"]
    assert job["metadata"]["namespace"] == "training"
    assert job["spec"]["completions"] == 2
    (container,) = job["spec"]["template"]["spec"]["containers"]
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    assert (variables["FACTOR"], variables["ANSWER"], variables["NOTE"]) == ("1e3", "y", "a: é")
    assert "token" in secret["stringData"]
    assert (listed.json["kind"], listed.json["items"][0]["spec"]["completions"]) == ("List", 3)


WORDS = st.sampled_from(
    ["1e3", "0x1f", "0o17", "12:30", "1_000", "y", "no", "null", "~", "true", ".inf", "2026-01-01", "<<", "="]
)
LEAVES = st.text(max_size=12) | WORDS | st.integers() | st.booleans()
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | WORDS, inner, max_size=3)
)


@pytest.mark.quick
@given(st.lists(st.dictionaries(st.text(max_size=8) | WORDS, VALUES, max_size=3), min_size=1, max_size=2))
def test_every_text_stays_a_text_for_readers_of_yaml_1_1_and_1_2(documents: list[dict[str, Any]]) -> None:
    written = as_yaml(documents)
    assert list(yaml.safe_load_all(written)) == documents  # 1.1
    for document in documents:
        assert specfiles.parse(as_yaml([document]), "here") == document  # 1.2


@pytest.mark.quick
def test_what_readers_of_other_languages_take_for_something_else_is_quoted() -> None:
    for text in ("1e3", "y", "n", "0o17", "1_000", ".5", "12:30"):
        assert as_yaml([{"key": text}]) == f'---\nkey: "{text}"\n'
    assert as_yaml([{"path": "/etc/rlhf", "gpu": "nvidia.com/gpu"}]) == "---\npath: /etc/rlhf\ngpu: nvidia.com/gpu\n"
    shared = {"key": "v1"}
    assert as_yaml([{"one": shared, "two": shared}]) == "---\none:\n  key: v1\ntwo:\n  key: v1\n"
