"""The rows of a data file, one JSON object a line, and the check that every line gets on arrival."""

import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

MAX_LINE_BYTES = 16 * 2**20


class Row(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Text(Row):
    """A row of raw text, for pretrain."""

    text: Annotated[str, Field(min_length=1)]


class Turn(Row):
    role: Literal["system", "user", "assistant"]
    content: str


class Dialogue(Row):
    """A row for sft: turns of one dialogue, at least one of them the assistant's."""

    messages: Annotated[list[Turn], Field(min_length=1)]


Said = Annotated[str, Field(min_length=1)] | Annotated[list[Turn], Field(min_length=1)]
"""What is answered: a text, or the turns of a dialogue so far."""


class Pair(Row):
    """A row for reward, dpo and orpo: two answers, of which the first is better, by `margin` if that is known."""

    prompt: Said
    chosen: Annotated[str, Field(min_length=1)]
    rejected: Annotated[str, Field(min_length=1)]
    margin: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] | None = None


class Scored(Row):
    """An answer, and how good somebody found it: what counts is which of two has the higher score."""

    text: Annotated[str, Field(min_length=1)]
    score: Annotated[float, Field(allow_inf_nan=False)]


class Ranked(Row):
    """A row for reward, dpo and orpo: several answers to a prompt, each with its score."""

    prompt: Said
    answers: Annotated[list[Scored], Field(min_length=2, max_length=64)]


class Judged(Row):
    """A row for kto: an answer to a prompt, and whether it is one to give."""

    prompt: Said
    completion: Annotated[str, Field(min_length=1)]
    label: bool


class Prompt(Row):
    """A row for ppo: a prompt, and the right answer where a term of the reward compares with it."""

    prompt: Said
    answer: str | None = None


Label = Annotated[str, Field(min_length=1, max_length=200)] | int
"""The name of a class. A whole number is a name as well, by its digits."""


class Labelled(Row):
    """A row for classify: a text and its class, or with `regression` the number that it has."""

    text: Annotated[str, Field(min_length=1)]
    label: Label | Annotated[float, Field(allow_inf_nan=False)]


class Multilabelled(Row):
    """A row for classify: a text and all classes that it belongs to, of which there may be none."""

    text: Annotated[str, Field(min_length=1)]
    labels: Annotated[list[Label], Field(max_length=1000)]


class Tagged(Row):
    """A row for classify: words, and the class of each."""

    tokens: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
    tags: Annotated[list[Label], Field(min_length=1)]


RowKind = Literal["completion", "label", "labels", "tokens", "text", "messages", "chosen", "answers", "prompt"]
# By the field that tells them; in this order: a judged answer has a label, too, labelled rows have a text, and all that
# are answers a prompt.
ROWS: dict[RowKind, type[Row]] = {
    "completion": Judged,
    "label": Labelled,
    "labels": Multilabelled,
    "tokens": Tagged,
    "text": Text,
    "messages": Dialogue,
    "chosen": Pair,
    "answers": Ranked,
    "prompt": Prompt,
}


class BadRow(ValueError):
    """A line that is not a row. `line` counts from 1."""

    def __init__(self, line: int, message: str):
        super().__init__(f"line {line}: {message}")
        self.line = line


class Summary(NamedTuple):
    kind: RowKind
    rows: int


def parse_line(raw: bytes, line: int) -> tuple[RowKind, Row]:
    """One line as a row. Raises BadRow with the line's number and what would be right."""
    if len(raw) > MAX_LINE_BYTES:
        raise BadRow(line, f"is longer than {MAX_LINE_BYTES} bytes")
    try:
        value = json.loads(raw.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise BadRow(line, f"is not UTF-8 (byte {error.start + 1} of the line)") from None
    except (ValueError, RecursionError) as error:
        raise BadRow(line, f"is not JSON: {error}") from None
    if b"\\ud" in raw.lower() and not _encodable(value):
        raise BadRow(line, "holds half of a surrogate pair (\\ud800 to \\udfff), which is no text")
    if not isinstance(value, dict):
        raise BadRow(line, f"must be a JSON object, such as {EXAMPLES['messages']}")
    kind = _kind(value)
    if kind is None:
        fields = ", ".join(f"`{name}`" for name in ROWS)
        raise BadRow(line, f"needs one of {fields}, such as {EXAMPLES['text']} or {EXAMPLES['messages']}")
    try:
        row = ROWS[kind].model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"])
        raise BadRow(line, f"`{where}`: {first['msg']}; right is {EXAMPLES[kind]}") from None
    if isinstance(row, Dialogue) and not any(t.role == "assistant" and t.content.strip() for t in row.messages):
        raise BadRow(line, "no turn of the assistant with any text in it: there is nothing to learn from this row")
    if isinstance(row, Pair) and row.chosen == row.rejected:
        raise BadRow(line, "`chosen` and `rejected` are the same: there is nothing to learn from this row")
    if isinstance(row, Ranked) and len({answer.score for answer in row.answers}) == 1:
        raise BadRow(line, "all answers have the same score: there is nothing to learn from this row")
    if isinstance(row, Labelled | Multilabelled | Tagged) and (wrong := _unlabelled(row)):
        raise BadRow(line, wrong)
    if isinstance(row, Pair | Ranked | Judged | Prompt) and (wrong := _unanswerable(row.prompt)):
        raise BadRow(line, f"`prompt`: {wrong}")
    return kind, row


def _unlabelled(row: Labelled | Multilabelled | Tagged) -> str | None:
    if isinstance(row, Tagged):
        if len(row.tokens) != len(row.tags):
            return f"{len(row.tokens)} `tokens` have {len(row.tags)} `tags`: each needs one"
        blank = next((number for number, token in enumerate(row.tokens) if not token.strip()), None)
        return None if blank is None else f"`tokens.{blank}`: has nothing but blanks"
    if not row.text.strip():
        return "`text`: has nothing but blanks"
    if isinstance(row, Multilabelled) and len(set(map(str, row.labels))) < len(row.labels):
        return "`labels`: names a class twice"
    return None


def _unanswerable(prompt: str | list[Turn]) -> str | None:
    if isinstance(prompt, str):
        return None if prompt.strip() else "has nothing but blanks"
    if prompt[-1].role == "assistant":
        return "the last turn is the assistant's already"
    return None if any(turn.content.strip() for turn in prompt) else "its turns have nothing but blanks"


def _encodable(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


EXAMPLES: dict[RowKind, str] = {
    "label": '{"text": "...", "label": "spam"}',
    "labels": '{"text": "...", "labels": ["sports", "money"]}',
    "tokens": '{"tokens": ["Ada", "lives", "here"], "tags": ["NAME", "O", "O"]}',
    "text": '{"text": "..."}',
    "messages": '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}',
    "chosen": '{"prompt": "...", "chosen": "...", "rejected": "..."}',
    "answers": '{"prompt": "...", "answers": [{"text": "...", "score": 1}, {"text": "...", "score": 0}]}',
    "completion": '{"prompt": "...", "completion": "...", "label": true}',
    "prompt": '{"prompt": "..."}',
}


class RowChecker:
    """Checks lines as they come; all rows of a file are of one kind. Blank lines are passed over."""

    def __init__(self) -> None:
        self.kind: RowKind | None = None
        self.rows = 0
        self._line = 0

    def feed(self, raw: bytes) -> None:
        """Takes the next line. Raises BadRow."""
        self._line += 1
        if self._line == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if not raw.strip():
            return
        kind, _ = parse_line(raw, self._line)
        if self.kind is None:
            self.kind = kind
        elif kind != self.kind:
            raise BadRow(self._line, f"has `{kind}`, but the rows before it have `{self.kind}`")
        self.rows += 1

    def summary(self) -> Summary:
        """What the file holds. Raises BadRow if it has no rows."""
        if self.kind is None:
            raise BadRow(max(self._line, 1), "the file has no rows")
        return Summary(self.kind, self.rows)


def check_rows(lines: Iterable[bytes]) -> Summary:
    """Checks all lines. Raises BadRow for the first one that is wrong."""
    checker = RowChecker()
    for raw in lines:
        checker.feed(raw)
    return checker.summary()


def first_without_answer(lines: Iterable[bytes]) -> int | None:
    """The first of checked lines of prompts that has no `answer`; they count from 1."""
    for number, raw in enumerate(lines, start=1):
        line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
        if line.strip() and json.loads(line).get("answer") is None:
            return number
    return None


# What stands beside a field that tells a kind: without it, the field is a stray one of a row of another kind.
_BESIDE: dict[RowKind, str] = {"completion": "prompt", "label": "text", "labels": "text", "tokens": "tags"}


def _kind(value: dict[str, Any]) -> RowKind | None:
    found = [kind for kind in ROWS if kind in value]
    meant = [kind for kind in found if _BESIDE.get(kind, kind) in value]
    return next(iter(meant or found), None)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
