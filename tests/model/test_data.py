"""From a file's lines to samples."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from tests.model.conftest import input_at, spec_of
from worker.contract.check import parse_spec
from worker.contract.stages import PretrainStage, SftStage
from worker.data import held_out, load_samples, sample
from worker.errors import BadData
from worker.tokenizers import bytes_tokenizer

MODEL = {"config": {"model_type": "llama"}}


def sft(**fields: Any) -> SftStage:
    stage = spec_of(MODEL, **fields).stage
    assert isinstance(stage, SftStage)
    return stage


def pretrain(**fields: Any) -> PretrainStage:
    stage = parse_spec({"stage": {"type": "pretrain", "model": MODEL, "data": "files/x"} | fields}).stage
    assert isinstance(stage, PretrainStage)
    return stage


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def talk(answer: str = "yo") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": answer}]}


def test_a_text_becomes_its_tokens_and_the_one_that_ends_it_all_trained_but_the_first(tmp_path: Path) -> None:
    path = written(tmp_path / "texts", {"text": "abc"}, {"text": "d"})
    first, second = load_samples(input_at(path), pretrain(max_length=2), bytes_tokenizer())
    assert first.ids.tolist() == [*b"abc", 258]
    assert first.trained.tolist() == [False, True, True, True]
    assert second.ids.tolist() == [*b"d", 258]


def test_a_row_that_is_too_long_is_refused_with_its_line_and_lengths(tmp_path: Path) -> None:
    path = written(tmp_path / "rows", talk(), "", talk("a" * 100))
    with pytest.raises(BadData, match=r"line 3: 123 tokens are more than max_length, 64"):
        load_samples(input_at(path), sft(), bytes_tokenizer())


def test_with_truncate_a_long_row_loses_its_end(tmp_path: Path) -> None:
    path = written(tmp_path / "rows", talk("a" * 100))
    (cut,) = load_samples(input_at(path), sft(data={"train": "files/x", "truncate": True}), bytes_tokenizer())
    assert len(cut) == 64
    assert cut.ids[-1] == ord("a")


def test_a_file_that_is_not_the_one_that_was_accepted_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "rows", talk())
    source = input_at(path)
    written(path, talk("changed"))
    with pytest.raises(BadData, match="is not the file that it was when the job was accepted"):
        load_samples(source, sft(), bytes_tokenizer())


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    source = input_at(written(tmp_path / "rows", talk()))
    (tmp_path / "rows").unlink()
    with pytest.raises(BadData, match=r"rows: cannot be read: No such file"):
        load_samples(source, sft(), bytes_tokenizer())


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([talk(), "{"], "line 2: is not JSON"),
        ([{"text": "a"}], "line 1: has `text`; needed are rows of `messages`"),
        ([""], "the file has no rows"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(tmp_path: Path, rows: list[Any], told: str) -> None:
    with pytest.raises(BadData, match=told):
        load_samples(input_at(written(tmp_path / "rows", *rows)), sft(), bytes_tokenizer())


def test_a_url_of_this_machine_is_opened_and_no_other(tmp_path: Path) -> None:
    path = written(tmp_path / "a b", talk())
    source = input_at(path)
    assert load_samples(source.model_copy(update={"location": path.as_uri()}), sft(), bytes_tokenizer())
    with pytest.raises(BadData, match="only files of this machine"):
        load_samples(source.model_copy(update={"location": "s3://a/b"}), sft(), bytes_tokenizer())


def test_more_rows_than_are_tokenized_at_once_keep_their_order(tmp_path: Path) -> None:
    path = written(tmp_path / "rows", *({"text": str(n)} for n in range(3000)))
    samples = load_samples(input_at(path), pretrain(), bytes_tokenizer())
    assert [bytes(s.ids[:-1].tolist()).decode() for s in samples] == [str(n) for n in range(3000)]


def test_rows_held_out_are_chosen_by_the_seed_and_are_not_trained_on() -> None:
    samples = [sample([n, n], [True, True]) for n in range(20)]
    train, kept = held_out(samples, 0.2, seed=1)
    assert len(kept) == 4
    assert sorted(int(s.ids[0]) for s in train + kept) == list(range(20))
    assert [s.ids[0] for s in held_out(samples, 0.2, seed=1)[1]] == [s.ids[0] for s in kept]
    assert [s.ids[0] for s in held_out(samples, 0.2, seed=2)[1]] != [s.ids[0] for s in kept]
    assert [len(part) for part in held_out(samples[:2], 0.01, seed=1)] == [1, 1]
    with pytest.raises(BadData, match="one row cannot be parted"):
        held_out(samples[:1], 0.5, seed=1)


def test_the_bytes_tokenizer_gives_every_text_back_and_saves_as_any_other(tmp_path: Path) -> None:
    tokenizer = bytes_tokenizer()
    text = "".join(map(chr, range(128))) + "  ünd 中文 🙂\n\n\u200d"
    ids = tokenizer(text)["input_ids"]
    assert ids == list(text.encode())
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(text)["input_ids"] == ids
    assert again.decode(ids) == text
    assert (again.pad_token_id, again.eos_token_id, len(again)) == (256, 258, 259)
    assert again.chat_template == tokenizer.chat_template
    assert again("<|im_start|>a<|im_end|>")["input_ids"] == [257, ord("a"), 258]
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).get_vocab_size() == 259
