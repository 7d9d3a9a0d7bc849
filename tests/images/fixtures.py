"""The image of the control plane on every node of the cluster, for all tests that ask for it."""

import os

import pytest

from tests.cluster.given import GivenCluster
from tests.cluster.machine import ClusterError
from tests.images.builder import Builder, Built
from tests.kubernetes.fixtures import AnyCluster

API_IMAGE = "TEST_API_IMAGE"


@pytest.fixture(scope="session")
def built_api() -> Built:
    """The control plane's image, built from this repository."""
    try:
        return Builder("api", lambda _: None).build()
    except ClusterError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def api_image(cluster: AnyCluster, request: pytest.FixtureRequest) -> str:
    """The name of the control plane's image, on every node; of TEST_API_IMAGE, where somebody else runs the cluster."""
    if isinstance(cluster, GivenCluster):
        if API_IMAGE not in os.environ:
            pytest.skip(f"The cluster is somebody else's: set {API_IMAGE} to an image that its nodes can pull.")
        return os.environ[API_IMAGE]
    built: Built = request.getfixturevalue("built_api")
    cluster.load(built.name, built.archive)
    return built.name
