"""A followed collection, with answers that come late: what is gone does not come back."""

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest

from api.operator.informer import Informer
from api.operator.kube_api import PODS, KubeApi

pytestmark = pytest.mark.quick
Json = dict[str, Any]


def thing(uid: str, version: int) -> Json:
    """An object as it was at a version; its uid is its key."""
    return {"metadata": {"uid": uid, "resourceVersion": str(version)}}


class Answers(KubeApi):
    """An API server whose answers are given: one list, and then these events."""

    def __init__(self, version: int, *items: Json, events: tuple[tuple[str, Json], ...] = ()) -> None:
        self.version, self.items, self.events = version, items, events

    async def list(self, kind: Any, query: Mapping[str, str]) -> Json:
        return {"metadata": {"resourceVersion": str(self.version)}, "items": list(self.items)}

    async def watch(
        self, kind: Any, query: Mapping[str, str], silence: float, opened: Callable[[], None]
    ) -> AsyncIterator[Json]:
        opened()
        for what, item in self.events:
            yield {"type": what, "object": item}


def following(answers: Answers) -> Informer:
    """An informer that was told nothing yet."""
    return Informer(answers, PODS, {}, key=lambda item: str(item["metadata"]["uid"]), changed=lambda key: None)


async def test_what_a_call_made_is_known_before_the_watch_tells() -> None:
    informer = following(Answers(5))
    await informer.list()
    informer.put(thing("a", 7))
    assert informer.keys() == {"a"}


async def test_the_late_answer_of_a_call_does_not_bring_back_what_was_deleted_meanwhile() -> None:
    informer = following(Answers(5, events=(("ADDED", thing("a", 7)), ("DELETED", thing("a", 9)))))
    await informer.list()
    await informer._watch()
    informer.put(thing("a", 7))
    assert informer.keys() == set()


async def test_a_late_list_does_not_bring_back_what_was_deleted_meanwhile() -> None:
    answers = Answers(5, thing("a", 4), events=(("DELETED", thing("a", 9)),))
    informer = following(answers)
    await informer.list()
    await informer._watch()
    await informer.list()
    assert informer.keys() == set()


async def test_a_list_drops_what_is_gone_and_keeps_what_came_after_it() -> None:
    answers = Answers(5, thing("a", 4))
    informer = following(answers)
    await informer.list()
    informer.put(thing("b", 8))
    answers.version, answers.items = 7, ()
    await informer.list()
    assert informer.keys() == {"b"}


async def test_events_older_than_a_list_tell_nothing() -> None:
    informer = following(Answers(9, events=(("ADDED", thing("a", 7)), ("MODIFIED", thing("b", 10)))))
    await informer.list()
    await informer._watch()
    assert informer.keys() == {"b"}


async def test_what_a_call_did_not_find_is_forgotten() -> None:
    informer = following(Answers(5, thing("a", 4)))
    await informer.list()
    informer.forget("a")
    assert informer.keys() == set()
