"""Volumes and their claims, as schedulers and kubelets speak of them."""

import re
from collections.abc import Iterator

from api.domain.cluster_words.hint import Hint
from api.domain.wording import listed
from worker.contract.spec import JobSpec

_CLAIM = re.compile(r'persistentvolumeclaim "([^"]+)" (not found|is being deleted)')
# A kubelet that cannot mount what is not there; see `kubelet.start`.
MISSING = re.compile(r'(?<!\w)(secret|configmap) "([^"]+)" not found', re.IGNORECASE)


def volumes(said: str, spec: JobSpec) -> Iterator[Hint]:
    own = {volume.claim for volume in (spec.resources.pod.volumes if spec.resources.pod else []) if volume.claim}
    for claim, fate in _CLAIM.findall(said):
        where = "resources.pod.volumes" if claim in own else "STORE_CLAIM or the file of WORKER_POD"
        yield Hint(
            f"The claim {claim} {fate.replace('not found', 'does not exist')} in the job's namespace: make it, or name "
            f"another in {where}.",
            "'resources.pod.volumes=[{name: NAME, mount_path: PATH, claim: CLAIM}]'" if claim in own else "",
        )
    if "unbound immediate PersistentVolumeClaims" in said or "available persistent volumes to bind" in said:
        named = f" (of the spec's volumes: {listed(sorted(own))}; else the store's)" if own else " (the store's)"
        yield Hint(
            f"A claim that the pods mount is bound to no volume{named}: `kubectl get pvc` shows which, and `kubectl "
            "describe pvc NAME` why."
        )
    if "volume node affinity conflict" in said or "PersistentVolume's node affinity" in said or "volume zone" in said:
        yield Hint(
            "A volume can be reached from some nodes alone, and those have no room or are not wanted: free one of "
            "them, or use a volume that all nodes reach."
        )
    if "non-existent pv" in said:
        yield Hint("The volume of a claim is gone: `kubectl get pvc,pv` shows which; make the claim anew.")
    if "exceed max volume count" in said:
        yield Hint("The nodes take no more volumes: wait until other pods end, or mount fewer (resources.pod.volumes).")
    if "ReadWriteOncePod" in said or "Multi-Attach error" in said:
        yield Hint(
            "A volume is in use by another pod, and may be mounted once: end that pod, or make it a volume that may be "
            "mounted many times (ReadWriteMany)."
        )
    elif MISSING.search(said):
        return  # `kubelet.start` speaks of it
    elif "MountVolume" in said or "AttachVolume" in said or "attach or mount volumes" in said:
        yield Hint(
            "A volume cannot be mounted on the node: `kubectl describe pod` says more. The spec's are "
            "resources.pod.volumes; the others are STORE_CLAIM's and those in the file of WORKER_POD."
        )
