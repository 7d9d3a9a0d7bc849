"""Rows as tokens, by real tokenizers: what transformers itself makes of them, and where words begin."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from examples.topics import minilm
from tests.model.conftest import smollm2_folder
from worker.classify.classes import Classes
from worker.classify.examples import Example, examples
from worker.contract.rows import parse_line
from worker.errors import BadData

__all__ = ["smollm2_folder"]
TAGS = Classes("tokens", ("NAME", "O"))
WORDS = ["Unbelievably", ",", "Ada", "O'Brien-Łukasz", "said", "héllo", "to", "(", "GPT-4", ")", "!"]


def tagged(tokenizer: PreTrainedTokenizerBase, words: list[str], **settings: Any) -> Example:
    row = {"tokens": words, "tags": ["NAME" if word[0].isupper() else "O" for word in words]}
    lines = [(1, parse_line(json.dumps(row).encode(), 1)[1])]
    (made,) = examples(lines, TAGS, tokenizer, **({"max_length": 500, "truncate": False} | settings))
    return made


@pytest.fixture(scope="module")
def wordpieces() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(minilm())


def test_a_words_label_is_read_at_its_first_piece(wordpieces: PreTrainedTokenizerBase) -> None:
    made = tagged(wordpieces, WORDS)
    theirs = wordpieces(WORDS, is_split_into_words=True)
    assert made.ids.tolist() == theirs["input_ids"]
    of = theirs.word_ids()
    assert made.at.tolist() == [of.index(number) for number in range(len(WORDS))]
    assert len(made.ids) > len(WORDS) + 2, "no word has several pieces: the test shows nothing"
    assert made.labels.tolist() == [TAGS.numbers["NAME" if word[0].isupper() else "O"] for word in WORDS]


def test_pieces_that_begin_with_a_blank_belong_to_the_word_behind_it(smollm2_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    made = tagged(tokenizer, WORDS)
    assert made.ids.tolist() == tokenizer(" ".join(WORDS))["input_ids"]
    bounds = [*made.at.tolist(), len(made.ids)]
    read = [tokenizer.decode(made.ids[start:end]).strip() for start, end in pairwise(bounds)]
    assert read == WORDS


def test_a_text_has_the_special_tokens_that_the_tokenizer_puts_around_it(wordpieces: PreTrainedTokenizerBase) -> None:
    lines = [(1, parse_line(b'{"text": "Hello there, you!", "label": "a"}', 1)[1])]
    classes = Classes("single_label", ("a", "b"))
    (whole,) = examples(lines, classes, wordpieces, max_length=20, truncate=False)
    assert wordpieces.decode(whole.ids) == "[CLS] hello there, you! [SEP]"
    (cut,) = examples(lines, classes, wordpieces, max_length=4, truncate=True)
    assert wordpieces.decode(cut.ids) == "[CLS] hello there [SEP]"


def test_words_behind_the_cut_have_no_label(wordpieces: PreTrainedTokenizerBase) -> None:
    whole, cut = tagged(wordpieces, WORDS), tagged(wordpieces, WORDS, max_length=8, truncate=True)
    assert len(cut.ids) == 8 and cut.ids[-1] == wordpieces.sep_token_id
    assert cut.at.tolist() == [at for at in whole.at.tolist() if at < 7]


def test_a_word_of_which_the_tokenizer_makes_nothing_is_refused(wordpieces: PreTrainedTokenizerBase) -> None:
    with pytest.raises(BadData, match=r"line 1: `tokens.1`: the tokenizer makes no token of"):
        tagged(wordpieces, ["a", "\u200b", "b"])
    with pytest.raises(BadData, match=r"`tokens.2`"):
        tagged(wordpieces, ["a", "b", "\u200b"])
