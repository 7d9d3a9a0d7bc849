"""Answers to be scored: exactly the tokens that a rollout has, up to the one that ends it."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tests.model.conftest import smollm2_folder  # noqa: F401
from tests.rl.comparisons import read
from worker.contract.rows import parse_line
from worker.errors import BadData, BadSpec
from worker.pairs import collate_pairs, compared, encode_pairs
from worker.rl.prompts import as_messages, prompt_ids
from worker.tokenizers import bytes_tokenizer

TOKENIZER = bytes_tokenizer()
PAD, END = 256, 258


def test_an_answer_ends_with_the_token_that_ends_a_turn_and_nothing_behind_it(tmp_path: Path) -> None:
    (row,) = read(tmp_path, [{"prompt": "hi", "chosen": "yes", "rejected": "no way"}], TOKENIZER)
    opening = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert [TOKENIZER.decode(ids) for ids in row.answers] == [opening + "yes<|im_end|>", opening + "no way<|im_end|>"]
    assert all(ids[-1] == END for ids in row.answers)


def test_the_real_tokenizer_gives_the_tokens_of_a_rollout(tmp_path: Path, smollm2_folder: Path) -> None:  # noqa: F811
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is Paris?"}]
    answers = ["In France.", " In  France,\nI think!", "\nFrance"]
    rows = [{"prompt": prompt, "answers": [{"text": text, "score": n} for n, text in enumerate(answers)]}]
    (row,) = read(tmp_path, rows, tokenizer)
    begun = prompt_ids(tokenizer, prompt)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for text, ids in zip(answers, row.answers, strict=True):
        assert ids[: len(begun)].tolist() == begun
        assert tokenizer.decode(ids[len(begun) : -1]) == text
        assert ids[-1] == end
        assert end not in ids[len(begun) : -1]


def test_without_a_chat_template_words_follow_words_and_the_text_ends(tmp_path: Path) -> None:
    tokenizer = bytes_tokenizer()
    tokenizer.chat_template = None
    (row,) = read(tmp_path, [{"prompt": "hi ", "chosen": "yes", "rejected": "no"}], tokenizer)
    assert [TOKENIZER.decode(ids) for ids in row.answers] == ["hi yes<|im_end|>", "hi no<|im_end|>"]


def test_a_template_that_closes_no_turn_still_ends_with_the_end_of_text(tmp_path: Path) -> None:
    tokenizer = bytes_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + (m['content'] | trim) + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    (row,) = read(tmp_path, [{"prompt": "hi", "chosen": " yes ", "rejected": "no"}], tokenizer)
    # What the template writes behind an answer is part of it there: an actor trained on this template says it too.
    assert TOKENIZER.decode(row.answers[0]) == "user: hi\nassistant: yes\n<|im_end|>"


def test_a_tokenizer_without_any_end_is_refused(tmp_path: Path) -> None:
    tokenizer = bytes_tokenizer()
    tokenizer.chat_template, tokenizer.eos_token = None, None
    with pytest.raises(BadSpec, match="no token that ends a turn or a text"):
        read(tmp_path, [{"prompt": "hi", "chosen": "yes", "rejected": "no"}], tokenizer)


def test_a_template_that_changes_its_own_prefix_is_refused_with_the_line(tmp_path: Path) -> None:
    tokenizer = bytes_tokenizer()
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(BadData, match="files/rows: line 1: the chat template changes its own prefix"):
        read(tmp_path, [{"prompt": "hi", "chosen": "yes", "rejected": "no"}], tokenizer)


def test_a_row_that_is_too_long_is_refused_or_loses_the_beginning_of_its_prompt(tmp_path: Path) -> None:
    rows = [
        {"prompt": "hi", "chosen": "yes", "rejected": "no"},
        {"prompt": "a long question", "chosen": "yes", "rejected": "never ever"},
    ]
    with pytest.raises(BadData, match="line 2: prompt and answer have 45 tokens, more than max_length, 40"):
        read(tmp_path, rows, TOKENIZER, max_length=40)
    whole = read(tmp_path, rows, TOKENIZER)[1]
    cut = read(tmp_path, rows, TOKENIZER, max_length=40, truncate=True)[1]
    # By as much for both answers: they still answer the same prompt.
    assert [ids.tolist() for ids in cut.answers] == [ids[5:].tolist() for ids in whole.answers]
    with pytest.raises(BadData, match="line 2: an answer alone has 11 tokens, and max_length is 8"):
        read(tmp_path, [{**rows[0], "prompt": "?"}, rows[1]], TOKENIZER, max_length=8, truncate=True)


def test_all_pairs_of_a_row_are_compared_but_ties() -> None:
    row = compared([[1], [2], [3], [4]], [2.0, 5.0, 2.0, 7.0])
    assert sorted(zip(row.better.tolist(), row.worse.tolist(), strict=True)) == [(1, 0), (1, 2), (3, 0), (3, 1), (3, 2)]
    assert row.best.tolist() == [3]


def test_a_batch_keeps_rows_whole_and_weighs_each_as_one(tmp_path: Path) -> None:
    rows = [compared([[1, 2], [3]], [1, 0], margin=0.5), compared([[4], [5, 6, 7], [8]], [1, 2, 3])]
    batch = collate_pairs([[row] for row in rows], pad_id=PAD)
    assert batch.input_ids.tolist() == [[1, 2, PAD], [3, PAD, PAD], [4, PAD, PAD], [5, 6, 7], [8, PAD, PAD]]
    assert batch.lengths.tolist() == [2, 1, 1, 3, 1]
    found = sorted(zip(batch.better.tolist(), batch.worse.tolist(), batch.weights.tolist(), strict=True))
    assert found == [
        (0, 1, 1.0),
        (3, 2, pytest.approx(1 / 3)),
        (4, 2, pytest.approx(1 / 3)),
        (4, 3, pytest.approx(1 / 3)),
    ]
    assert batch.margins.tolist() == [0.5, 0.0, 0.0, 0.0]
    assert batch.best.tolist() == [0, 4]
    assert (batch.trained, batch.answers, batch.tokens) == (2, 5, 8)


def test_a_batch_without_rows_has_a_row_of_padding_and_no_pair() -> None:
    batch = collate_pairs([], pad_id=PAD)
    assert batch.input_ids.tolist() == [[PAD]]
    assert (batch.trained, batch.answers, len(batch.better), batch.lengths.tolist()) == (0, 0, 0, [1])


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    prompt=st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip),
    answers=st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=2, max_size=4, unique=True
    ),
)
def test_whatever_the_words_prompt_answer_and_end_are_all_there_is(prompt: str, answers: list[str]) -> None:
    row = encoded(TOKENIZER, {"prompt": prompt, "answers": [{"text": t, "score": n} for n, t in enumerate(answers)]})
    begun = prompt_ids(TOKENIZER, as_messages(prompt))
    for text, ids in zip(answers, row.answers, strict=True):
        assert ids.tolist() == [*begun, *text.encode(), END]


def encoded(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> Any:
    line = parse_line(json.dumps(row).encode(), 1)[1]
    return next(encode_pairs([(1, line)], tokenizer, END, max_length=10**6, truncate=False))
