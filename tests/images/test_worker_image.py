"""The worker's image for CPUs, built once and run as a cluster does: some 6 GB, so `make soak` alone."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client.specfiles import read
from tests.cluster.given import GivenCluster
from tests.cluster.machine import ClusterError
from tests.images.builder import REPOSITORY, Builder
from tests.images.contents import contents
from tests.kubernetes.fixtures import AnyCluster
from tests.kubernetes.plane import Plane

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]
EXAMPLES = REPOSITORY / "examples"
NODE = 1
"""The one node that gets it."""


@pytest.fixture(scope="module")
def worker_image(cluster: AnyCluster) -> Iterator[str]:
    """Its name. Nothing of it is kept: it is large, and built in some minutes."""
    if isinstance(cluster, GivenCluster):
        pytest.skip("The image is put on a node of our own.")
    builder = Builder("worker", print, layers=False)  # each is written three times, and these are of 6 GB
    try:
        begin = time.monotonic()
        built = builder.build(ACCELERATOR="cpu")
        print(f"\nthe worker's image: built in {time.monotonic() - begin:.0f} s")
        builder.forget_layers()
        _look_into(built.archive)
        begin = time.monotonic()
        cluster.load(built.name, built.archive, [NODE])
        print(f"put on a node in {time.monotonic() - begin:.0f} s")
    except ClusterError as error:
        pytest.fail(str(error), pytrace=False)
    finally:
        builder.forget()
    yield built.name
    cluster.unload(built.name)


def _look_into(archive: Path) -> None:
    """What the archive alone tells: it is there for a moment."""
    with contents(archive) as image:
        told = image.configuration["config"]
        paths = [entry.path for layer in image.layers[1:] for entry in image.entries(layer)]
    print(f"{archive.stat().st_size / 1e9:.1f} GB in {len(paths)} files")
    assert (told["User"], told["Entrypoint"]) == ("10001:10001", ["python", "-m", "worker"])
    assert told["Labels"]["org.opencontainers.image.description"].endswith("for cpu")
    assert "DS_ACCELERATOR=cpu" in told["Env"]
    # Nothing is compiled when it runs.
    assert not [path for path in paths if re.fullmatch(r"/usr/bin/.*(gcc|g\+\+|cc)(-\d+)?", str(path))]


@pytest.fixture(scope="module")
def images_plane(plane: Plane, worker_image: str) -> Iterator[Plane]:
    """A control plane whose workers run in the image, with nothing of this machine in their pods but the store."""
    bare: dict[str, Any] = {"command": None, "env": [], "volumes": [], "volumeMounts": []}
    node = {"kubernetes.io/hostname": f"node{NODE}"}
    with plane.another(image=worker_image, nodeSelector=node, **bare) as made:
        yield made


def test_a_rehearsal_is_killed_and_goes_on_in_the_image(images_plane: Plane) -> None:
    job = images_plane.client.jobs.create(read(str(EXAMPLES / "rehearse.yaml"))).id
    ended = images_plane.comes_to(job, "succeeded", "failed", seconds=300)
    assert ended.phase == "succeeded", images_plane.story(job)
    assert [attempt.resumed_from for attempt in images_plane.client.jobs.attempts(job)] == [None, 10]


def test_the_first_job_of_the_readme_becomes_a_model_in_the_image(images_plane: Plane) -> None:
    spec = json.loads((EXAMPLES / "tiny.json").read_text())
    data = images_plane.client.files.upload(REPOSITORY / spec["stage"]["data"]).id
    job = images_plane.client.jobs.create({**spec, "stage": {**spec["stage"], "data": f"files/{data}"}}).id
    ended = images_plane.comes_to(job, "succeeded", "failed", seconds=900)
    assert ended.phase == "succeeded", images_plane.story(job)
    assert images_plane.client.models.get("tiny").job_id == job
