"""The whole path on a real cluster: a spec comes in, pods run the real worker, a model or an outcome comes out."""

from tests.kubernetes.plane import Plane, rehearsal


def test_a_job_of_one_pod_succeeds_and_leaves_nothing_behind(plane: Plane) -> None:
    job = plane.client.jobs.create(rehearsal(6)).id
    plane.comes_to(job, "succeeded")
    plane.is_empty()
    assert "training step" in "".join(line.text for line in plane.client.jobs.logs(job))
