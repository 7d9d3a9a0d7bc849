"""Which tokens of a dialogue are trained."""

import pytest
from transformers import PreTrainedTokenizerBase

from tests.model.conftest import spec_of
from worker.contract.rows import Dialogue, Turn
from worker.contract.stages import SftStage
from worker.data import Sample, encode, trained_tokens
from worker.dialogue import turn_end
from worker.errors import BadData
from worker.tokenizers import bytes_tokenizer

STAGE = spec_of({"config": {"model_type": "llama"}}).stage
assert isinstance(STAGE, SftStage)


def dialogue(*turns: tuple[str, str]) -> Dialogue:
    return Dialogue(messages=[Turn.model_validate({"role": role, "content": content}) for role, content in turns])


def one(tokenizer: PreTrainedTokenizerBase, *turns: tuple[str, str]) -> Sample:
    return encode([(1, dialogue(*turns))], tokenizer, STAGE, 10_000, False)[0]


def trained_text(tokenizer: PreTrainedTokenizerBase, sample: Sample) -> str:
    return tokenizer.decode(sample.ids[sample.trained].tolist())


def test_the_assistants_words_and_the_end_of_its_turn_are_trained_and_nothing_else() -> None:
    tokenizer = bytes_tokenizer()
    sample = one(tokenizer, ("user", "hi"), ("assistant", "yo"))
    start, end = 257, 258
    asked = [start, *b"user\nhi", end, *b"\n"]
    opening = [start, *b"assistant\n"]
    assert sample.ids.tolist() == [*asked, *opening, *b"yo", end, *b"\n"]
    # The newline behind the end of a turn is the template's: a model never generates it.
    assert sample.trained.tolist() == [False] * len(asked + opening) + [True] * 3 + [False]


def test_every_turn_of_the_assistant_is_trained() -> None:
    tokenizer = bytes_tokenizer()
    sample = one(tokenizer, ("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    assert trained_text(tokenizer, sample) == "b<|im_end|>d<|im_end|>"


def test_a_dialogue_may_begin_with_the_assistant() -> None:
    tokenizer = bytes_tokenizer()
    sample = one(tokenizer, ("assistant", "hello"), ("user", "a"), ("assistant", "b"))
    assert trained_text(tokenizer, sample) == "hello<|im_end|>b<|im_end|>"


def test_blanks_and_letters_of_several_bytes_leave_no_hole_in_the_mask() -> None:
    tokenizer = bytes_tokenizer()
    answer = "  ünd   中文\n\n   so "
    assert trained_text(tokenizer, one(tokenizer, ("user", "a"), ("assistant", answer))) == answer + "<|im_end|>"


def test_the_real_models_blanks_leave_no_hole_either(smollm2: tuple[object, PreTrainedTokenizerBase]) -> None:
    _, tokenizer = smollm2
    answer = "def f(x):\n    if x:\n        return  '中'\n"
    sample = one(tokenizer, ("user", "code?"), ("assistant", answer))
    assert trained_text(tokenizer, sample) == answer + "<|im_end|>"


def test_a_system_prompt_that_the_template_inserts_is_there_and_not_trained(
    smollm2: tuple[object, PreTrainedTokenizerBase],
) -> None:
    _, tokenizer = smollm2
    sample = one(tokenizer, ("user", "hi"), ("assistant", "yo"), ("user", "and?"), ("assistant", "bye"))
    assert "You are a helpful AI assistant named SmolLM" in tokenizer.decode(sample.ids.tolist())
    assert trained_text(tokenizer, sample) == "yo<|im_end|>bye<|im_end|>"


def test_the_real_templates_dialogue_that_begins_with_the_assistant(
    smollm2: tuple[object, PreTrainedTokenizerBase],
) -> None:
    _, tokenizer = smollm2
    sample = one(tokenizer, ("assistant", "hello"), ("user", "hi"))
    assert trained_text(tokenizer, sample) == "hello<|im_end|>"


def test_a_template_that_changes_its_own_prefix_is_refused_with_the_line() -> None:
    tokenizer = bytes_tokenizer()
    # As some do with the thoughts of earlier turns: only the last answer is shown whole.
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}:{{ m.content if loop.last else m.content[:1] }};{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    row = dialogue(("user", "a"), ("assistant", "long"), ("user", "c"), ("assistant", "d"))
    with pytest.raises(BadData, match=r"line 7: the chat template changes its own prefix"):
        encode([(7, row)], tokenizer, STAGE, 1000, False)


def test_a_prompt_that_is_not_what_stands_before_the_answer_is_refused() -> None:
    tokenizer = bytes_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"
        "{% if add_generation_prompt %}Answer now:{% endif %}"
    )
    with pytest.raises(BadData, match=r"line 2: .*prompt for turn 2 is not what stands before the answer"):
        encode([(2, dialogue(("user", "a"), ("assistant", "b")))], tokenizer, STAGE, 1000, False)


def test_what_a_template_refuses_is_told_with_the_line() -> None:
    tokenizer = bytes_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(BadData, match=r"line 3: the chat template refuses the dialogue: roles must alternate"):
        encode([(3, dialogue(("user", "a"), ("assistant", "b")))], tokenizer, STAGE, 1000, False)


def test_a_row_of_which_nothing_is_trained_is_refused() -> None:
    tokenizer = bytes_tokenizer()
    with pytest.raises(BadData, match=r"line 4: not one token"):
        encode([(4, dialogue(("user", "a" * 90), ("assistant", "b")))], tokenizer, STAGE, 64, True)


def test_a_token_over_a_spans_border_counts_to_it_and_an_empty_one_inside_it_too() -> None:
    #        "ab" "c d" "" "e" "\n": the span is characters 3 to 6
    offsets = [(0, 2), (2, 5), (5, 5), (5, 6), (6, 7)]
    assert trained_tokens(offsets, [(3, 6)]).tolist() == [False, True, True, True, False]


def test_generation_ends_at_the_token_that_ends_a_turn(smollm2: tuple[object, PreTrainedTokenizerBase]) -> None:
    assert turn_end(bytes_tokenizer()) == 258
    assert turn_end(smollm2[1]) == 2
