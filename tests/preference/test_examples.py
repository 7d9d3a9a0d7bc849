"""The examples are run to their ends, and do what they say."""

import json
from pathlib import Path
from typing import Any

import pytest

from client.specfiles import read
from tests.engine import jobs
from tests.engine.jobs import Job
from tests.engine.pool import Pool

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("stage", ["dpo", "orpo", "kto"])
def test_friendly_answers_become_likelier(one: Pool, tmp_path: Path, stage: str) -> None:
    spec: dict[str, Any] = read(str(ROOT / f"examples/{stage}-tiny.yaml"))
    rows = [json.loads(line) for line in (ROOT / spec["stage"]["data"]).read_text().splitlines()]
    spec["stage"]["data"] = {"train": "files/train"}
    ended = one.run(jobs.attempt, Job(tmp_path, spec, rows), 1)[0]
    assert ended.outcome == "Finished", ended.message
    assert ended.curve("eval/accuracy")[40] > 0.7
    assert ended.curve("eval/rewards/margin")[40] > 0
