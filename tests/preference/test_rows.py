"""Rows of preferences as tokens: which are asked for, who is whose partner, and what a batch may not change."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.model.conftest import GPT2, LLAMA
from tests.preference.rows import Made, judged, pairs
from worker.errors import BadData
from worker.packing import IGNORED
from worker.preference.judged import Judgement, partnered

NONE = np.zeros(0, dtype=np.int32)


def made(folder: Path, stage: str, count: int = 6, config: dict[str, Any] = LLAMA, **fields: Any) -> Made:
    return Made(folder, stage, (judged if stage == "kto" else pairs)(count), model=config, **fields)


def row(prompt: list[int], answer: list[int]) -> Judgement:
    return Judgement(np.array(prompt, np.int32), np.array(answer, np.int32), True, NONE, NONE)


def test_an_answers_tokens_are_asked_for_with_its_end_and_its_prompts_are_not(tmp_path: Path) -> None:
    its = made(tmp_path, "dpo")
    batch = its.batch()
    tokenizer = its.loaded.tokenizer
    asked = [tokenizer.decode(labels[labels != IGNORED]) for labels in batch.labels]
    rows = pairs(6)
    assert asked[:2] == [rows[0]["chosen"] + "<|im_end|>", rows[0]["rejected"] + "<|im_end|>"]
    assert asked[4:7] == [answer["text"] + "<|im_end|>" for answer in rows[2]["answers"]]
    places = batch.labels != IGNORED
    first = places.int().argmax(dim=1)
    assert first.tolist() == batch.starts.tolist()
    # The token at a position is chosen at the one before it.
    shifted = batch.input_ids[:, 1:][places[:, :-1]]
    assert shifted.equal(batch.labels[places])


def test_a_better_answers_prompt_is_asked_for_where_it_is_learnt(tmp_path: Path) -> None:
    batch = made(tmp_path, "orpo", prompts=True).batch()
    labelled = (batch.labels != IGNORED).sum(dim=1)
    better, worse = batch.better[0], batch.worse[0]
    assert labelled[better] == batch.lengths[better] - 1
    assert labelled[worse] < batch.lengths[worse] - 1


def test_every_answer_has_a_number_of_its_own(tmp_path: Path) -> None:
    its = made(tmp_path, "dpo", 9)
    rows = its.dataset.train
    together = its.batch(rows[::-1]).numbers.tolist()
    assert sorted(together) == list(range(sum(len(row.answers) for row in rows)))  # type: ignore[attr-defined]
    assert its.batch(rows[:1]).numbers.tolist() == [0, 1]


@pytest.mark.parametrize("seed", range(20))
def test_a_partner_answers_another_prompt_and_every_answer_is_a_partners_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 30))
    groups = int(rng.integers(2, 8))
    rows = [row([int(rng.integers(groups)) if i > 1 else i], [100 + i]) for i in range(count)]
    found = partnered(rows, "it", seed=seed, max_length=9, first=5)
    prompts = {100 + i: row.prompt[0] for i, row in enumerate(rows)}
    assert all(prompts[int(row.other_answer[0])] != row.prompt[0] for row in found)
    assert [row.number for row in found] == list(range(5, 5 + count))
    most = max(Counter(int(row.prompt[0]) for row in rows).values())
    if 2 * most <= count:
        assert sorted(int(row.other_answer[0]) for row in found) == sorted(prompts)
    again = partnered(rows, "it", seed=seed, max_length=9, first=5)
    assert [row.other_answer[0] for row in again] == [row.other_answer[0] for row in found]


def test_a_prompt_loses_its_beginning_where_its_partners_answer_is_long() -> None:
    rows = [row([1, 2, 3, 4, 5], [10]), row([6], [11, 12, 13, 14])]
    found = partnered(rows, "it", seed=0, max_length=6, first=0)
    assert (found[0].other_prompt.tolist(), found[0].other_answer.tolist()) == ([4, 5], [11, 12, 13, 14])
    assert (found[1].other_prompt.tolist(), found[1].other_answer.tolist()) == ([6], [10])
    assert found[0].footprint == 6


def test_one_prompt_has_no_partners() -> None:
    with pytest.raises(BadData, match="it: all rows have the same prompt"):
        partnered([row([1], [2]), row([1], [3])], "it", seed=0, max_length=6, first=0)
    assert partnered([], "it", seed=0, max_length=6, first=0) == []


@pytest.mark.parametrize("stage", ["dpo", "orpo", "kto"])
@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=lambda c: c["model_type"])
def test_neither_padding_nor_the_rows_beside_it_change_a_rows_sums(
    tmp_path: Path, stage: str, config: dict[str, Any]
) -> None:
    its = made(tmp_path, stage, 6, config)
    with torch.no_grad():
        together = its.sums()
        alone = sum(its.sums(batch=its.batch([row])) for row in its.dataset.train)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("stage", ["dpo", "orpo", "kto"])
def test_a_batch_without_rows_adds_nothing_and_reaches_every_weight(tmp_path: Path, stage: str) -> None:
    its = made(tmp_path, stage)
    sums = its.sums(batch=its.batch([]))
    assert not sums.any()
    sums[0].backward()
    # Other ranks wait for gradients of all: there must be some, of zero.
    assert all(p.grad is not None and not p.grad.any() for p in its.loaded.model.parameters())


def test_a_cut_prompt_still_says_where_the_answer_begins(tmp_path: Path) -> None:
    rows = [{"prompt": "cat " * 40, "chosen": "yes", "rejected": "no"}]
    fields = {"max_length": 60, "data": {"train": "files/x", "truncate": True}}
    its = Made(tmp_path, "dpo", rows, model=LLAMA, **fields)
    batch = its.batch()
    assert batch.lengths.max() == 60
    asked = [its.loaded.tokenizer.decode(labels[labels != IGNORED]) for labels in batch.labels]
    assert asked == ["yes<|im_end|>", "no<|im_end|>"]
