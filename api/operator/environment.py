"""The environment of a local attempt's launcher: no secret but a bucket's. What its ranks need beyond it, the launcher
adds."""

import os
from collections.abc import Mapping
from pathlib import Path

# What a worker may need from the person who started the control plane. All else stays here: it may be a secret.
_KEPT = {
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "LD_PRELOAD",
    "VIRTUAL_ENV", "CC", "CXX", "CUDA_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
    "NO_PROXY", "no_proxy", "DS_ACCELERATOR", "PYTHONPATH", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT",
    "TRANSFORMERS_OFFLINE", "TORCH_HOME", "TORCH_EXTENSIONS_DIR", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR",
}  # fmt: skip
_KEPT_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "NCCL_", "GLOO_", "TRITON_")


def environment(lock_fd: int, given: Mapping[str, str], source: Path, *, for_bucket: bool = False) -> dict[str, str]:
    """What a launcher is started with. `given` is the control plane's own; `source` is where `worker` is found.

    `for_bucket`: its store is a bucket, which it reads and writes with the credentials of the control plane.
    """
    prefixes = (*_KEPT_PREFIXES, *(("AWS_",) if for_bucket else ()))
    env = {name: value for name, value in given.items() if name in _KEPT or name.startswith(prefixes)}
    env["PYTHONPATH"] = os.pathsep.join([str(source), *filter(None, [env.get("PYTHONPATH")])])
    env["WORKER_LOCK_FD"] = str(lock_fd)
    return env
