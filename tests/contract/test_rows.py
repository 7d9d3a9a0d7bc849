"""Lines of a data file: checked one by one; the first that is wrong is named."""

import json

import pytest

from worker.contract.rows import BadRow, check_rows, first_without_answer, parse_line

pytestmark = pytest.mark.quick

TALK = b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}\n'
TEXT = b'{"text": "once"}\n'


def refused(lines: list[bytes]) -> str:
    with pytest.raises(BadRow) as bad:
        check_rows(lines)
    return str(bad.value)


def test_rows_are_counted_and_their_kind_is_told() -> None:
    assert check_rows([TALK, b"\n", TALK]) == ("messages", 2)
    assert check_rows([b"\xef\xbb\xbf" + TEXT]) == ("text", 1)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"{\n", "is not JSON"),
        (b"[1]\n", "must be a JSON object"),
        (b'{"text": NaN}\n', "NaN is not JSON"),
        (b'{"text": "\xff"}\n', "is not UTF-8"),
        (b'{"text": ""}\n', "`text`"),
        (b'{"text": 3}\n', "`text`"),
        (b'{"text": "a", "extra": 1}\n', "`extra`"),
        (b'{"question": "a"}\n', "`text`, `messages`, `chosen`"),
        (b'{"text": "a \\ud800 b"}\n', "surrogate"),
        (b'{"prompt": [{"role": "user", "content": "\\udfff"}]}\n', "surrogate"),
        (b'{"prompt": [{"role": "user", "content": " "}]}\n', "nothing but blanks"),
        (TALK, "but the rows before it have `text`"),
        (b"[" * 100_000 + b"\n", "is not JSON"),
    ],
)
def test_a_broken_line_seven_is_named(line: bytes, says: str) -> None:
    message = refused([TEXT] * 6 + [line] + [TEXT])
    assert message.startswith("line 7: ") and says in message


def test_blank_lines_count_as_lines() -> None:
    assert refused([TEXT, b"\n", b"{"]).startswith("line 3: ")


@pytest.mark.parametrize("messages", [[], [{"role": "user", "content": "hi"}], [{"role": "assistant", "content": " "}]])
def test_a_dialogue_without_an_answer_is_refused(messages: list[dict[str, str]]) -> None:
    assert refused([json.dumps({"messages": messages}).encode()]).startswith("line 1: ")


@pytest.mark.parametrize("role", ["robot", "tool", ""])
def test_a_role_that_no_template_knows_is_refused(role: str) -> None:
    assert "`messages.0.role`" in refused([json.dumps({"messages": [{"role": role, "content": "x"}]}).encode()])


def test_a_file_without_rows_is_refused() -> None:
    assert "has no rows" in refused([])
    assert "has no rows" in refused([b"\n", b"  \n"])


def test_the_first_prompt_without_an_answer_is_found_by_its_line() -> None:
    right = b'{"prompt": "2+2?", "answer": "4"}\n'
    assert first_without_answer([b"\xef\xbb\xbf" + right, b"\n", right]) is None
    assert first_without_answer([right, b"\n", b'{"prompt": "\\"answer\\": 4"}\n']) == 3
    assert first_without_answer([right, b'{"prompt": "x", "answer": null}']) == 2
    assert first_without_answer([b'{"prompt": "x", "answer": ""}']) is None


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"prompt": "a", "answer": "b", "label": 1}, "label"),
        ({"messages": [{"role": "assistant", "content": "a"}], "tokens": 12}, "tokens"),
    ],
)
def test_a_stray_field_is_told_as_one_and_makes_no_row_of_another_kind(row: dict[str, object], field: str) -> None:
    with pytest.raises(BadRow, match=f"`{field}`: Extra inputs are not permitted"):
        parse_line(json.dumps(row).encode(), 1)
