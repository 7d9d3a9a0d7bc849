"""The cluster's certificates, made by openssl for some days, and the kubeconfigs that carry them."""

import base64
import json
import subprocess
from pathlib import Path

from tests.cluster.layout import API
from tests.cluster.machine import ClusterError

_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
_DAYS = ["-days", "30"]


class Authority:
    """One certificate authority that signs all: servers, components and people."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.certificate = folder / "ca.crt"
        self.service_account_key = folder / "service-accounts.key"

    def create(self) -> None:
        """Make the authority, and the key that signs the tokens of service accounts."""
        self.folder.mkdir(parents=True, mode=0o700)
        # Debian's own openssl.cnf would make every certificate an authority.
        (self.folder / "openssl.cnf").write_text("[req]\ndistinguished_name = name\n[name]\n")
        self._openssl(
            *("req", "-x509", *_KEY, *_DAYS, "-subj", "/CN=rlhf-test-cluster", "-keyout", "ca.key", "-out", "ca.crt"),
            *("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign"),
        )
        self._openssl("ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", self.service_account_key.name)

    def issue(self, name: str, subject: str, *alternatives: str) -> tuple[Path, Path]:
        """Make a certificate for a subject such as `/CN=admin`, for names such as `IP:127.0.0.1`, and its key."""
        extensions = ["-addext", "extendedKeyUsage=clientAuth,serverAuth"]
        if alternatives:
            extensions += ["-addext", f"subjectAltName={','.join(alternatives)}"]
        self._openssl(
            *("req", "-x509", *_KEY, *_DAYS, "-CA", "ca.crt", "-CAkey", "ca.key", "-subj", subject),
            *("-keyout", f"{name}.key", "-out", f"{name}.crt", *extensions),
        )
        return self.folder / f"{name}.crt", self.folder / f"{name}.key"

    def kubeconfig(self, path: Path, subject: str) -> Path:
        """Write a kubeconfig for a subject, with everything inside it."""
        certificate, key = self.issue(path.stem, subject)
        user = {"client-certificate-data": _inline(certificate), "client-key-data": _inline(key)}
        cluster = {"server": f"https://127.0.0.1:{API}", "certificate-authority-data": _inline(self.certificate)}
        path.touch(mode=0o600)
        path.write_text(kubeconfig(cluster, user))
        return path

    def _openssl(self, *arguments: str) -> None:
        command = ["openssl", *arguments]
        if arguments[0] == "req":
            command += ["-config", "openssl.cnf"]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ClusterError(f"`{' '.join(command)}` failed: {done.stderr.strip()[-500:]}")


def kubeconfig(cluster: dict[str, str], user: dict[str, str]) -> str:
    """The text of a kubeconfig (JSON is YAML) with one cluster and one user."""
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": user}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "current-context": "test",
        },
        indent=1,
    )


def _inline(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()
