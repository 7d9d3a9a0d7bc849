"""Specs as an earlier version stored them: jobs that were taken go on after an upgrade.

`stored/` holds what the first version wrote for each stage: no field may go, and no bound come, that these would break.
"""

import json
from pathlib import Path

import pytest

from worker.contract.spec import JobSpec

pytestmark = pytest.mark.quick
STORED = sorted((Path(__file__).parent / "stored").glob("*.json"))


@pytest.mark.parametrize("path", STORED, ids=[path.stem for path in STORED])
def test_a_spec_that_was_stored_is_read_and_says_what_it_said(path: Path) -> None:
    stored = json.loads(path.read_text())
    read = JobSpec.model_validate(stored).model_dump(mode="json")

    def kept(then: object, now: object) -> bool:
        if isinstance(then, dict):
            return isinstance(now, dict) and all(name in now and kept(value, now[name]) for name, value in then.items())
        if isinstance(then, list):
            return isinstance(now, list) and len(then) == len(now) and all(map(kept, then, now))
        return then == now

    assert kept(stored, read)


def test_each_stage_has_one() -> None:
    assert {path.stem for path in STORED} == {"sft", "pretrain", "reward", "classify", "ppo", "evaluate", "rehearse"}
