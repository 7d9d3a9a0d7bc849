"""Which answers are shown, what of each, and how they get from a rank to the control plane."""

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tests.process.attempts import Attempt, until
from tests.process.listener import Listener
from worker.contract.ppo import Samples
from worker.contract.protocol import Event, Metric, Report, Sample
from worker.outbox import SAMPLES_A_REPORT, Outbox
from worker.samples import LONGEST_TEXT, MOST_TOKENS, chosen, pieces, shown
from worker.spool import Spool

MakeAttempt = Callable[..., Attempt]
AT = datetime(2026, 1, 1, tzinfo=UTC)
# What the control plane takes as one body, less a good part.
MEGABYTE = 2**20


def sample(step: int = 1, index: int = 0, answer: str = "yes") -> Sample:
    return shown(step=step, index=index, prompt="well?", answer=answer, reward=0.5, ended=True)


@pytest.mark.quick
@given(
    per_step=st.integers(0, 300),
    total=st.integers(0, 20_000),
    steps=st.integers(1, 300),
    count=st.integers(0, 600),
)
def test_no_iteration_and_no_job_shows_more_than_its_budget(per_step: int, total: int, steps: int, count: int) -> None:
    budget = Samples(per_step=per_step, total=total)
    by_step = [chosen(budget, step=step, steps=steps, count=count) for step in range(1, steps + 1)]
    assert sum(map(len, by_step)) <= total
    for indices in by_step:
        assert len(indices) <= min(per_step, count)
        assert indices == sorted(set(indices))
        assert all(0 <= index < count for index in indices)
    if min(per_step, total, count):
        assert by_step[0], "nothing is shown of the first iteration"
    if min(per_step, count) * steps <= total:
        assert all(len(indices) == min(per_step, count) for indices in by_step), "budget was left over"


@pytest.mark.quick
def test_the_budget_is_spread_over_the_iterations_and_over_each_of_them() -> None:
    budget = Samples(per_step=200, total=1000)
    counts = Counter(len(chosen(budget, step=step, steps=300, count=512)) for step in range(1, 301))
    assert counts == {3: 200, 4: 100}
    assert chosen(Samples(per_step=4), step=1, steps=10, count=512) == [0, 128, 256, 384]
    assert chosen(budget, step=7, steps=300, count=2) == [0, 1]


@pytest.mark.quick
def test_what_is_too_long_is_cut_and_says_so() -> None:
    made = shown(
        step=1,
        index=0,
        prompt="begin" + "x" * 20_000 + "end?",
        answer="y" * 20_000,
        tokens=["z" * 1000] * 10_000,
        kl=[0.123456789] * 10_000,
        reward=0.0,
        ended=False,
    )
    assert len(made.prompt) == len(made.answer) == LONGEST_TEXT
    assert made.prompt.startswith("begin")
    assert made.prompt.endswith("end?")
    assert "…" in made.prompt
    assert made.answer.endswith("y…")
    assert len(made.tokens) == len(made.kl) == LONGEST_TEXT // 256
    assert made.kl[0] == 0.123457
    many = shown(step=1, index=0, prompt="", answer="", tokens=["a"] * 9999, kl=[0.0] * 9999, reward=0.0, ended=True)
    assert len(many.tokens) == MOST_TOKENS


@pytest.mark.quick
def test_a_sample_holds_what_can_be_stored() -> None:
    made = shown(
        step=1,
        index=0,
        prompt="a\0b",
        answer="\ud800",
        tokens=["\0", "x"],
        kl=[float("nan"), float("inf")],
        terms={"good": 1.0, "bad": float("nan")},
        reward=1.0,
        ended=True,
    )
    assert (made.prompt, made.answer, made.tokens) == ("a�b", "�", ["�", "x"])
    assert (made.kl, made.terms) == ([0.0, 0.0], {"good": 1.0})
    for reward in (float("nan"), float("-inf")):
        with pytest.raises(ValueError, match="finite"):
            shown(step=1, index=0, prompt="", answer="", reward=reward, ended=True)
    with pytest.raises(ValueError, match="2 tokens have 1 nats"):
        shown(step=1, index=0, prompt="", answer="", tokens=["a", "b"], kl=[0.0], reward=0.0, ended=True)


def byte_tokenizer() -> Tokenizer:
    """Every byte is a token, as in a model that was never taught a character beyond ASCII."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={character: n for n, character in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def word_tokenizer(text: str) -> Tokenizer:
    """Words that bear their blank, which is lost where one is decoded by itself: as SentencePiece has it."""
    words = pre_tokenizers.Metaspace().pre_tokenize_str(text)
    made = Tokenizer(models.WordLevel({word: n for n, word in enumerate({word for word, _ in words})}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    return made


@pytest.mark.quick
@given(st.text(max_size=40))
def test_the_texts_of_tokens_make_up_the_answer_and_no_character_is_torn(text: str) -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode(text).ids
    found = pieces(tokenizer.decode, ids)
    assert len(found) == len(ids) == len(text.encode(errors="replace"))
    assert "".join(found) == text
    assert [piece for piece in found if piece] == list(text) or "�" in text


@pytest.mark.quick
def test_the_texts_of_tokens_keep_their_blanks_and_a_torn_end_is_shown_as_it_is() -> None:
    tokenizer = word_tokenizer("I am well thank you")
    assert pieces(tokenizer.decode, tokenizer.encode("I am well").ids) == ["I", " am", " well"]
    torn = byte_tokenizer()
    assert pieces(torn.decode, torn.encode("a🙂").ids[:3]) == ["a", "", "�"]


@pytest.mark.quick
def test_long_samples_go_into_several_reports_and_each_stays_well_below_a_megabyte() -> None:
    outbox = Outbox()
    # Characters that are longest in JSON.
    longest = shown(
        step=1,
        index=0,
        prompt="\x01" * 9000,
        answer="\x01" * 9000,
        tokens=["\x01\x01"] * 9000,
        kl=[-1e-6 / 3] * 9000,
        reward=0.1,
        ended=True,
    )
    for index in range(5):
        outbox.hear({"kind": "sample", "sample": longest.model_copy(update={"index": index}).model_dump(mode="json")})
    outbox.hear({"kind": "event", "event": Event(type="Loaded", message="x" * 8000, at=AT).model_dump(mode="json")})
    reports = []
    while outbox.pending():
        reports.append(outbox.cut())
    assert [s.index for report in reports for s in report.samples] == list(range(5))
    assert all(len(report.model_dump_json()) < MEGABYTE // 2 for report in reports)
    for index in range(SAMPLES_A_REPORT + 1):
        outbox.hear({"kind": "sample", "sample": sample(index=index).model_dump(mode="json")})
    assert [len(outbox.cut().samples) for _ in range(3)] == [SAMPLES_A_REPORT, 1, 0]


def spooled(folder: Path, limit: int, steps: int, a_step: int) -> tuple[Spool, list[Report]]:
    """What is left of `steps` iterations that nobody heard of, each with one point, one event and some answers."""
    spool = Spool(folder, limit)
    for step in range(1, steps + 1):
        spool.add(
            Report(
                seq=step,
                activity="training",
                metrics=[Metric(name="ppo/kl", step=step, value=1.0, at=AT)],
                events=[Event(type="Told", message=f"event {step}", at=AT)],
                samples=[sample(step, index, "x" * 500) for index in range(a_step)],
            )
        )
        assert spool.bytes <= limit * 3 / 2
    left = []
    while (report := spool.oldest()) is not None:
        left.append(report)
        spool.remove(report.seq)
    return spool, left


@pytest.mark.quick
def test_a_full_spool_gives_up_samples_before_points_and_never_events(tmp_path: Path) -> None:
    spool, left = spooled(tmp_path, 60_000, steps=24, a_step=16)
    assert [m.step for report in left for m in report.metrics] == list(range(1, 25))
    assert len([e for report in left for e in report.events]) == 24
    assert spool.thinned == 0
    by_step = Counter(s.step for report in left for s in report.samples)
    assert sum(by_step.values()) + spool.samples_thinned == 24 * 16
    assert set(by_step) == set(range(1, 25)), "of each iteration some are left"
    assert max(count for step, count in by_step.items() if step < 22) <= 2 * min(by_step.values())


@pytest.mark.quick
def test_a_spool_without_room_for_a_sample_a_step_keeps_those_of_fewer_steps(tmp_path: Path) -> None:
    spool, left = spooled(tmp_path, 20_000, steps=30, a_step=4)
    steps = [s.step for report in left for s in report.samples]
    assert 4 < len(set(steps)) < 30
    assert spool.thinned == 0
    assert steps == sorted(steps)
    assert steps[0] <= 8
    assert steps[-1] >= 28


@pytest.mark.quick
def test_only_a_spool_that_is_full_of_the_rest_has_no_samples_and_fewer_points(tmp_path: Path) -> None:
    spool, left = spooled(tmp_path, 8_000, steps=30, a_step=4)
    assert spool.thinned > 0
    assert not [s for report in left[:-8] for s in report.samples]
    assert len([e for report in left for e in report.events]) == 30


def test_the_answers_of_all_steps_arrive_each_once_and_from_one_rank(listener: Listener, attempt: MakeAttempt) -> None:
    job = attempt(stage={"steps": 20, "samples": 30, "seconds_per_step": 0.01}, resources={"per_node": 2}).start()
    assert job.wait() == 0
    samples = [s for report in listener.accepted for s in report.samples]
    assert [(s.step, s.index) for s in samples] == [(step, index) for step in range(1, 21) for index in range(30)]
    assert all(len(s.tokens) == len(s.kl) for s in samples)


def test_samples_wait_in_the_spool_while_nobody_answers(listener: Listener, attempt: MakeAttempt) -> None:
    job = attempt(stage={"steps": 300, "samples": 2}).start()
    until(lambda: listener.step > 0)
    listener.status = lambda report: 503
    until(lambda: any(Report.model_validate_json(path.read_bytes()).samples for path in job.spool))
    listener.status = lambda report: 200
    assert job.wait() == 0
    told = [(s.step, s.index) for report in listener.accepted for s in report.samples]
    assert told == [(step, index) for step in range(1, 301) for index in range(2)]


def test_a_resumed_rehearsal_gives_the_answers_of_one_that_was_never_stopped(
    listener: Listener, attempt: MakeAttempt
) -> None:
    stage = {"steps": 60, "samples": 1, "seed": 4}
    first = attempt(stage=stage, checkpoint={"every_steps": 10}).start()
    until(lambda: listener.step >= 25)
    first.kill_group()
    until(lambda: not first.alive())
    cut = len(listener.accepted)
    assert attempt(2, stage=stage, checkpoint={"every_steps": 10}).start().wait() == 0
    before = {s.step: (s.prompt, s.answer, s.kl, s.reward) for r in listener.accepted[:cut] for s in r.samples}
    after = {s.step: (s.prompt, s.answer, s.kl, s.reward) for r in listener.accepted[cut:] for s in r.samples}
    resumed = next(r.resumed_from for r in listener.accepted[cut:] if r.resumed_from is not None)
    assert set(after) == set(range(resumed + 1, 61))
    again = before.keys() & after.keys()
    assert again
    assert {step: before[step] for step in again} == {step: after[step] for step in again}
