"""etcd, the API server, the controller manager and the scheduler."""

from tests.cluster.build import program
from tests.cluster.layout import (
    ADMIN,
    API,
    CONTROLLER_MANAGER,
    ETCD,
    ETCD_PEER,
    FIRST_SERVICE,
    FOLDER,
    HOST,
    SCHEDULER,
    SERVICE_NETWORK,
)
from tests.cluster.pki import Authority
from tests.cluster.process import Processes

# How long a node may be silent until it is NotReady: tests of lost nodes wait for it.
NODE_SILENCE = "12s"


def start_api_server(processes: Processes, authority: Authority) -> None:
    """Start etcd and the API server on it, and make the admin's kubeconfig."""
    certificate, key = authority.issue(
        "api-server",
        "/CN=kube-apiserver",
        *("DNS:localhost", "DNS:kubernetes.default.svc", "IP:127.0.0.1", f"IP:{FIRST_SERVICE}", f"IP:{HOST}"),
    )
    kubelet_client, kubelet_key = authority.issue(
        "kubelet-client", "/O=system:masters/CN=kube-apiserver-kubelet-client"
    )
    authority.kubeconfig(ADMIN, "/O=system:masters/CN=admin")
    etcd, peer = f"http://127.0.0.1:{ETCD}", f"http://127.0.0.1:{ETCD_PEER}"
    processes.start(
        "etcd",
        [
            str(program("etcd")),
            f"--data-dir={FOLDER / 'etcd'}",
            "--unsafe-no-fsync",  # this machine's loss of power is no test of ours
            f"--listen-client-urls={etcd}",
            f"--advertise-client-urls={etcd}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
        ],
    )
    processes.start(
        "api-server",
        [
            str(program("kube-apiserver")),
            f"--etcd-servers={etcd}",
            f"--secure-port={API}",
            f"--advertise-address={HOST}",
            f"--cert-dir={FOLDER / 'api-server'}",
            f"--client-ca-file={authority.certificate}",
            f"--tls-cert-file={certificate}",
            f"--tls-private-key-file={key}",
            f"--kubelet-client-certificate={kubelet_client}",
            f"--kubelet-client-key={kubelet_key}",
            "--kubelet-preferred-address-types=InternalIP",
            f"--service-account-key-file={authority.service_account_key}",
            f"--service-account-signing-key-file={authority.service_account_key}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-cluster-ip-range={SERVICE_NETWORK}",
            "--authorization-mode=Node,RBAC",
            "--allow-privileged=true",
        ],
    )


def start_controllers(processes: Processes, authority: Authority) -> None:
    """Start what acts on the API server's objects, once that answers."""
    manager = authority.kubeconfig(FOLDER / "controller-manager.conf", "/CN=system:kube-controller-manager")
    processes.start(
        "controller-manager",
        [
            str(program("kube-controller-manager")),
            f"--kubeconfig={manager}",
            f"--secure-port={CONTROLLER_MANAGER}",
            f"--cert-dir={FOLDER / 'controller-manager'}",
            f"--service-account-private-key-file={authority.service_account_key}",
            f"--root-ca-file={authority.certificate}",
            "--use-service-account-credentials=true",
            "--leader-elect=false",
            f"--node-monitor-grace-period={NODE_SILENCE}",
            # A claim that it hears of before its volume is looked at again after this: by default, after 15 s.
            "--pvclaimbinder-sync-period=1s",
        ],
    )
    scheduler = authority.kubeconfig(FOLDER / "scheduler.conf", "/CN=system:kube-scheduler")
    processes.start(
        "scheduler",
        [
            str(program("kube-scheduler")),
            f"--kubeconfig={scheduler}",
            f"--secure-port={SCHEDULER}",
            f"--cert-dir={FOLDER / 'scheduler'}",
            "--leader-elect=false",
        ],
    )
