"""Talking to a model's folder."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from worker.chat import Dialogue, Manner, Speaker, _answer, answers, speaker
from worker.models import Loaded


@pytest.fixture(scope="module")
def who(smollm2_folder: Path) -> Speaker:
    return speaker(smollm2_folder)


def test_the_real_model_knows_the_capital_of_france(who: Speaker) -> None:
    said = answers(who, ["What is the capital of France?", "What is 2 + 2?"], Manner(max_new_tokens=16))
    assert said[0] == "The capital of France is Paris."
    assert len(said) == 2


def test_an_answer_comes_in_pieces_and_is_remembered(who: Speaker) -> None:
    dialogue = Dialogue(who, Manner(max_new_tokens=16, system="You answer briefly."))
    pieces = list(dialogue.ask("What is the capital of France?"))
    assert len(pieces) > 3
    assert [turn["role"] for turn in dialogue.turns] == ["system", "user", "assistant"]
    assert dialogue.turns[-1]["content"] == "".join(pieces)
    dialogue.reset()
    assert [turn["role"] for turn in dialogue.turns] == ["system"]


def test_an_answer_that_is_stopped_ends_there_and_the_dialogue_goes_on(who: Speaker) -> None:
    dialogue = Dialogue(who, Manner(max_new_tokens=2000))
    answer = dialogue.ask("Tell me a very long story.")
    first = next(answer)
    answer.close()
    assert dialogue.turns[-1] == {"role": "assistant", "content": first}
    dialogue.manner = Manner(max_new_tokens=2)
    assert list(dialogue.ask("And?"))


def test_sampling_is_repeated_by_its_seed(who: Speaker) -> None:
    prompts, manner = ["Say something."], Manner(max_new_tokens=12, temperature=1.5, seed=4)
    assert answers(who, prompts, manner) == answers(who, prompts, manner)
    assert answers(who, prompts, Manner(max_new_tokens=12, temperature=1.5, seed=5)) != answers(who, prompts, manner)


def test_without_a_terminal_each_line_is_a_question(smollm2_folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "worker.chat", str(smollm2_folder), "--json", "--max-new-tokens", "10"],
        input="What is the capital of France?\n\nSay hi.\n", capture_output=True, text=True, check=True,
    )  # fmt: skip
    first, second = [json.loads(line) for line in done.stdout.splitlines()]
    assert first == {"question": "What is the capital of France?", "answer": "The capital of France is Paris."}
    assert second["question"] == "Say hi."


def test_what_is_no_model_is_said_in_a_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "worker.chat", str(tmp_path), "--once", "hi"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "cannot be talked to: it is not a model's folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_a_terminal_would_obey_is_left_out_of_an_answer(
    tiny: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = tiny()
    dialogue = Dialogue(Speaker(loaded.model, loaded.tokenizer, []), Manner())
    monkeypatch.setattr(dialogue, "ask", lambda question: iter(["a\x1b", "]52;c;eA==\x07\tb\x9b2J\n", "\rc"]))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    _answer(dialogue, "hi", as_json=False)
    assert capsys.readouterr().out == "a]52;c;eA==\tb2J\nc\n"
