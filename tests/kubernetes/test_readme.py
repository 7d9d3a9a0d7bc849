"""The README's commands for Kubernetes, as they stand but for names, addresses and ports."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import yaml

from tests.cluster.build import program
from tests.e2e.plane import free_port
from tests.kubernetes.fixtures import AnyCluster
from tests.kubernetes.namespace import REPOSITORY, Namespace


def test_a_spec_becomes_a_model_by_the_commands_of_the_readme(
    cluster: AnyCluster, namespace: Namespace, tmp_path: Path
) -> None:
    section = (REPOSITORY / "README.md").read_text().split("\n## On Kubernetes\n")[1]
    found = re.search(r"^```bash\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert found
    (tmp_path / "worker-pod.yaml").write_text(yaml.safe_dump(namespace.pod_additions))
    port, worker_port = free_port(), free_port()
    ours = {
        "NAMESPACE=rlhf ": f"NAMESPACE={namespace.name} ",
        "file:///mnt/rlhf": namespace.store.as_uri(),
        "STORE_CLAIM=rlhf ": f"STORE_CLAIM={namespace.store_claim} ",
        "worker-pod.yaml": str(tmp_path / "worker-pod.yaml"),
        "8001": str(worker_port),
        "10.0.0.5": cluster.host_address,
        "127.0.0.1:8000": f"127.0.0.1:{port}",
        "--data rlhf-data": f"--port {port} --data {tmp_path / 'data'}",
    }
    script = found[1]
    for theirs, given in ours.items():
        assert theirs in script, theirs
        script = script.replace(theirs, given)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{program('kubectl').parent}:{os.environ['PATH']}",
        "KUBECONFIG": str(cluster.kubeconfig),
        "RLHF_SERVER": f"http://127.0.0.1:{port}",
    }
    done = subprocess.Popen(
        ["bash", "-euc", f"trap 'kill $(jobs -p); wait' EXIT\n{script}"],
        cwd=REPOSITORY, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = done.communicate(timeout=400)
    finally:
        if done.poll() is None:
            os.killpg(done.pid, signal.SIGKILL)
    assert done.returncode == 0, said
    for kind in ("job.batch", "secret", "service", "networkpolicy.networking.k8s.io"):
        assert re.search(rf"{kind}/\S+ created \(server dry run\)", said), said
    assert "succeeded" in said
