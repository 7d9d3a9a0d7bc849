"""The thread that reports, and what is brought to disk beside it."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.process.attempts import Attempt
from tests.process.listener import Listener
from worker.outbox import Outbox
from worker.reporter import Reporter


def test_news_that_is_brought_to_disk_amid_a_report_is_told_before_what_comes_after_it(
    listener: Listener, attempt: Callable[..., Attempt], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, outbox, spooled = attempt(), Outbox(), []
    reporter = Reporter(job.order, outbox, job.own / "spool", lambda heard: None)
    reporter.accepted = True
    deliver = reporter._deliver

    def then_a_checkpoint_begins() -> Any:
        done = deliver()
        if not spooled:
            outbox.event("First", "before a checkpoint")
            reporter.shelter()
            spooled.extend(job.spool)
        return done

    monkeypatch.setattr(reporter, "_deliver", then_a_checkpoint_begins)
    reporter._report()
    outbox.event("Second", "after it")
    reporter._report()
    assert len(spooled) == 1
    assert [event.type for event in listener.events] == ["First", "Second"]
    assert job.spool == []
