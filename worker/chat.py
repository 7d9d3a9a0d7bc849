"""Talk to a model's folder: `python -m worker.chat FOLDER`. And its answers to a list of prompts, for comparisons.

Ctrl-C stops an answer, not the program. Without a terminal, each line of the input is a question of its own.
"""

import argparse
import json
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
    set_seed,
)
from transformers.utils import logging

from worker.dialogue import turn_end
from worker.gguf import converted, gguf_in

# Control characters but tabs and newlines: a terminal obeys them, and a model may have learnt any of them.
_CONTROL = {code: None for code in [*range(0x20), *range(0x7F, 0xA0)] if chr(code) not in "\t\n"}
HELP = "/reset begins anew, /quit ends, Ctrl-C stops an answer"


@dataclass(frozen=True)
class Speaker:
    """A model that answers dialogues."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    ends: list[int]
    """The tokens at which an answer ends."""


@dataclass(frozen=True)
class Manner:
    """How answers are made. A `temperature` of 0 always takes the likeliest token."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    seed: int = 17
    system: str | None = None


class _Stop(StoppingCriteria):
    """Ends an answer once the flag is set."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        stopped = torch.full((input_ids.shape[0],), self.asked.is_set(), dtype=torch.bool, device=input_ids.device)
        assert isinstance(stopped, torch.BoolTensor | torch.Tensor)
        return stopped  # type: ignore[return-value]


def speaker(folder: Path, cache: Path | None = None) -> Speaker:
    """Loads a model's folder, or a GGUF file (converted into `cache`, by default in the user's cache folder).

    Raises OSError or ValueError for what is not a model, and ValueError for one that knows no dialogues.
    """
    if (gguf := gguf_in(folder)) is not None:
        folder, _ = converted(gguf, cache or Path.home() / ".cache" / "rlhf-operator" / "models")
    if not (folder / "config.json").is_file():
        raise ValueError("it is not a model's folder: it has no config.json and no .gguf file")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if not tokenizer.chat_template:
        raise ValueError(f"{folder} has no chat template, so it holds no dialogues; it was trained on text alone")
    model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, trust_remote_code=False)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    known = model.generation_config.eos_token_id
    ends = {*([known] if isinstance(known, int) else known or []), turn_end(tokenizer)} - {None}
    return Speaker(model, tokenizer, sorted(ends))


@dataclass
class Dialogue:
    """A dialogue with a speaker, turn by turn."""

    speaker: Speaker
    manner: Manner
    turns: list[dict[str, str]] = field(default_factory=list)
    _stop: _Stop = field(default_factory=_Stop)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets all that was said."""
        self.turns = [{"role": "system", "content": self.manner.system}] if self.manner.system else []

    def ask(self, question: str) -> Iterator[str]:
        """The answer, piece by piece as it is made. What was said of it when it is stopped stays in the dialogue."""
        self.turns.append({"role": "user", "content": question})
        self._stop.asked.clear()
        streamer = TextIteratorStreamer(self.speaker.tokenizer, skip_prompt=True, skip_special_tokens=True)
        failed: list[BaseException] = []
        thread = threading.Thread(target=self._generate, args=(streamer, failed), daemon=True)
        thread.start()
        pieces: list[str] = []
        try:
            for piece in streamer:
                pieces.append(piece)
                yield piece
        finally:
            self._stop.asked.set()
            thread.join()
            self.turns.append({"role": "assistant", "content": "".join(pieces)})
        if failed:
            raise failed[0]

    def _generate(self, streamer: TextIteratorStreamer, failed: list[BaseException]) -> None:
        try:
            inputs = _prompts(self.speaker, [self.turns])
            self.speaker.model.generate(
                **inputs,
                **_settings(self.speaker, self.manner),
                streamer=streamer,
                stopping_criteria=StoppingCriteriaList([self._stop]),
            )
        except BaseException as error:
            failed.append(error)
            streamer.end()


def answers(
    folder: Path | str | Speaker, prompts: Sequence[str], manner: Manner | None = None, *, batch: int = 8
) -> list[str]:
    """A model's answers to prompts, each a dialogue of its own, in their order. By default the likeliest ones."""
    who = folder if isinstance(folder, Speaker) else speaker(Path(folder))
    how = manner or Manner()
    opening = [{"role": "system", "content": how.system}] if how.system else []
    said: list[str] = []
    set_seed(how.seed)
    for start in range(0, len(prompts), batch):
        turns = [[*opening, {"role": "user", "content": prompt}] for prompt in prompts[start : start + batch]]
        inputs = _prompts(who, turns)
        with torch.inference_mode():
            made = who.model.generate(**inputs, **_settings(who, how))
        new = made[:, inputs["input_ids"].shape[1] :]  # [rows, new tokens]
        said += [text.strip() for text in who.tokenizer.batch_decode(new, skip_special_tokens=True)]
    return said


def _prompts(who: Speaker, dialogues: list[list[dict[str, str]]]) -> dict[str, torch.Tensor]:
    """Dialogues up to the opening of the next answer, padded on the left: [rows, time] each."""
    texts = [
        who.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) for turns in dialogues
    ]
    encoded = who.tokenizer(texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
    device = who.model.device
    return {name: encoded[name].to(device) for name in ("input_ids", "attention_mask")}


def _settings(who: Speaker, manner: Manner) -> dict[str, Any]:
    sampled = {"do_sample": True, "temperature": manner.temperature} if manner.temperature > 0 else {"do_sample": False}
    pad = who.tokenizer.pad_token_id
    return {
        "max_new_tokens": manner.max_new_tokens,
        "eos_token_id": who.ends,
        "pad_token_id": who.ends[0] if pad is None else pad,
        **sampled,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Gives the exit code: 0, or 2 for what is not a model that can talk."""
    parser = argparse.ArgumentParser(prog="rlhf chat", description="Talk to a finished model.", epilog=HELP)
    parser.add_argument("model", type=Path, help="the model's folder, or a .gguf file")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="longest answer, in tokens")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: always the likeliest token")
    parser.add_argument("--seed", type=int, default=17, help="for sampling with a temperature")
    parser.add_argument("--system", help="the system's turn, before the first question")
    parser.add_argument("--once", metavar="QUESTION", help="answer this alone")
    parser.add_argument("--json", action="store_true", help="one JSON object an answer: question and answer")
    given = parser.parse_args(arguments)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        who = speaker(given.model)
    except Exception as error:
        print(f"{given.model} cannot be talked to: {error}", file=sys.stderr)
        return 2
    manner = Manner(given.max_new_tokens, given.temperature, given.seed, given.system)
    set_seed(manner.seed)
    dialogue = Dialogue(who, manner)
    if given.once is not None:
        _answer(dialogue, given.once, as_json=given.json)
    elif sys.stdin.isatty():
        _converse(dialogue, as_json=given.json)
    else:
        for line in filter(None, map(str.strip, sys.stdin)):
            dialogue.reset()
            _answer(dialogue, line, as_json=given.json)
    return 0


def _converse(dialogue: Dialogue, *, as_json: bool) -> None:
    """Questions from a terminal until it ends."""
    print(HELP)
    while True:
        try:
            question = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        match question:
            case "":
                continue
            case "/quit" | "/exit":
                return
            case "/reset":
                dialogue.reset()
                print("(a new dialogue)")
            case _:
                _answer(dialogue, question, as_json=as_json)


def plain(text: str) -> str:
    """A model's words without what a terminal would obey: it neither moves the cursor nor writes the clipboard."""
    return text.translate(_CONTROL)


def _answer(dialogue: Dialogue, question: str, *, as_json: bool) -> None:
    """Prints one answer as it comes; Ctrl-C ends it."""
    pieces = dialogue.ask(question)
    said = []
    try:
        for piece in pieces:
            said.append(piece)
            if not as_json:
                print(plain(piece) if sys.stdout.isatty() else piece, end="", flush=True)
    except KeyboardInterrupt:
        pieces.close()  # type: ignore[attr-defined]
    if as_json:
        print(json.dumps({"question": question, "answer": "".join(said).strip()}, ensure_ascii=False), flush=True)
    else:
        print(flush=True)


if __name__ == "__main__":
    sys.exit(main())
