"""What schedulers, kubelets, quotas and queues say of pods that do not run, and what of the spec or of the cluster it
is about. Pure: their words in, hints out.

Their sentences differ from version to version: each is known by the part of it that stays, and one that nobody knows
gives no hint.
"""

from collections.abc import Callable, Iterator

from api.domain.cluster_words import kubelet, kueue, refusals, scheduler, volumes
from api.domain.cluster_words.hint import Hint
from worker.contract.spec import JobSpec

__all__ = ["Hint", "hints"]

_FAMILIES: tuple[Callable[[str, JobSpec], Iterator[Hint]], ...] = (
    scheduler.room,
    scheduler.taints,
    scheduler.placement,
    volumes.volumes,
    kubelet.image,
    kubelet.start,
    refusals.quota,
    refusals.refused,
    kueue.queue,
)


def hints(words: str, spec: JobSpec) -> list[Hint]:
    """What to do about the words; empty where they say nothing that is known."""
    # What a scheduler says after `preemption:` repeats the words before it, of pods that would have to go.
    said = words.partition(" preemption:")[0]
    found: dict[str, Hint] = {}
    for family in _FAMILIES:
        for hint in family(said, spec):
            found.setdefault(hint.text, hint)
    return list(found.values())
