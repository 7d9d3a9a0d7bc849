"""What a worker's pod can do with what it was given: report for its own attempt, and nothing on the cluster."""

import ssl
from pathlib import Path

import httpx
import pytest

from tests.kubernetes.plane import Plane, rehearsal
from tests.kubernetes.processes import launcher

FOREVER = 10_000


@pytest.fixture(scope="module")
def roots(plane: Plane) -> list[Path]:
    """The file systems of a running job's two pods, as seen from the machine."""
    job = plane.client.jobs.create(rehearsal(FOREVER, resources={"nodes": 2})).id
    plane.reaches_step(job, 1)
    return [Path(f"/proc/{launcher(job, node)}/root") for node in (0, 1)]


def test_no_token_of_the_cluster_is_anywhere_in_a_pod(roots: list[Path]) -> None:
    for root in roots:
        mounts = [line.split()[4] for line in (root.parent / "mountinfo").read_text().splitlines()]
        assert "/etc/rlhf" in mounts
        assert not [mount for mount in mounts if "serviceaccount" in mount]
        assert not (root / "var/run/secrets").exists()
        variables = (root.parent / "environ").read_bytes().decode()
        token = (root / "etc/rlhf/token").read_text().strip()
        assert token
        assert token not in variables


def test_the_api_server_does_not_know_the_token_of_an_attempt(plane: Plane, roots: list[Path]) -> None:
    cluster = plane.cluster
    trust = ssl.create_default_context()
    trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
    path = f"/api/v1/namespaces/{plane.namespace.name}/pods"
    with httpx.Client(base_url=cluster.api_url, verify=trust) as strangers:
        for root in roots:
            token = (root / "etc/rlhf/token").read_text().strip()
            assert strangers.get(path, headers={"Authorization": f"Bearer {token}"}).status_code == 401
    assert cluster.http.get(path).status_code == 200
