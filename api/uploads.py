"""Uploads: multipart, streamed to the store, each line checked and hashed as it comes."""

import hashlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from api.errors import Refusal, invalid
from api.stores import Store, Upload
from worker.contract.problem import Problem
from worker.contract.rows import MAX_LINE_BYTES, BadRow, RowChecker

# Lines are checked in a thread, this many bytes a time: the loop goes on answering others.
_BATCH = 256 * 1024
_MAX_FIELD = 4096
# A word, of ASCII alone: it stands in addresses and on command lines.
PURPOSE = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$"
# Boundaries and headers of the form around the file.
FORM_OVERHEAD = 64 * 1024


@dataclass(frozen=True, slots=True)
class Uploaded:
    """A data file that is whole and right, at its temporary place."""

    filename: str
    purpose: str
    kind: str
    rows: int
    bytes: int
    sha256: str


def too_large(limit: int) -> Refusal:
    """More than `limit` bytes of a file. What is still to come is read no more."""
    return Refusal(413, f"the file is larger than {limit} bytes", headers={"Connection": "close"})


class Receiver:
    """Takes a data file's bytes: writes, hashes and checks them. Discard `upload` if it fails."""

    def __init__(self, upload: Upload, limit: int) -> None:
        self.upload, self.limit = upload, limit
        self.bytes = 0
        self._hash = hashlib.sha256()
        self._rows = RowChecker()
        self._rest = bytearray()

    def take(self, data: bytes) -> None:
        """The next bytes. Raises Refusal: too large, or a line that is no row."""
        self.bytes += len(data)
        if self.bytes > self.limit:
            raise too_large(self.limit)
        self._hash.update(data)
        self.upload.write(data)
        self._rest += data
        if b"\n" in data:
            *lines, rest = bytes(self._rest).split(b"\n")
            self._rest = bytearray(rest)
            for line in lines:
                self._check(line)
        elif len(self._rest) > MAX_LINE_BYTES:
            # The check says so itself; what matters is not to wait for the line's end.
            self._check(bytes(self._rest))

    def end(self) -> tuple[str, int, str]:
        """Kind, rows and SHA-256, once no byte can be lost any more. Raises Refusal."""
        if self._rest:
            self._check(bytes(self._rest))
        try:
            summary = self._rows.summary()
        except BadRow as error:
            raise invalid([Problem("file", str(error))]) from None
        self.upload.end()
        return summary.kind, summary.rows, self._hash.hexdigest()

    def _check(self, line: bytes) -> None:
        try:
            self._rows.feed(line)
        except BadRow as error:
            raise invalid([Problem("file", str(error))]) from None


class Form:
    """A multipart form with the parts `purpose` and `file`, in any order; the file goes to its receiver."""

    def __init__(self, content_type: str, receiver: Receiver) -> None:
        media, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if media != b"multipart/form-data" or not boundary:
            raise Refusal(415, "send multipart/form-data with the parts `purpose` and `file`")
        self.receiver = receiver
        self.filename: str | None = None
        self._fields: dict[str, bytearray] = {}
        self._headers: dict[bytes, bytes] = {}
        self._name = self._header = self._value = b""
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._on_field,
                "on_header_value": self._on_value,
                "on_header_end": self._on_header,
                "on_headers_finished": self._on_headers,
                "on_part_data": self._on_data,
                "on_end": self._on_end,
            },
        )

    def take(self, data: bytes) -> None:
        """The next bytes of the body. Raises Refusal."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise Refusal(400, f"the form is malformed: {error}") from None

    def end(self) -> Uploaded:
        """What was uploaded. Raises Refusal."""
        if not self._ended:
            raise Refusal(400, "the form ended too early")
        problems = []
        purpose = self._fields.get("purpose", bytearray()).decode("utf-8", "replace")
        if re.fullmatch(PURPOSE, purpose) is None:
            says = "write a word of at most 32 ASCII letters, digits, `-` and `_`, such as train or eval"
            problems.append(Problem("purpose", says))
        if self.filename is None:
            problems.append(Problem("file", "is required: a part with a filename"))
        if problems:
            raise invalid(problems)
        kind, rows, sha256 = self.receiver.end()
        name = (self.filename or "").replace("\\", "/").rpartition("/")[2][-255:] or "upload.jsonl"
        return Uploaded(name, purpose, kind, rows, self.receiver.bytes, sha256)

    def _begin(self) -> None:
        self._headers, self._header, self._value = {}, b"", b""

    def _on_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header = self._value = b""

    def _on_headers(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._name = options.get(b"name", b"")
        if self._name == b"file":
            if self.filename is not None:
                raise invalid([Problem("file", "give it once")])
            filename = options.get(b"filename", b"upload.jsonl").decode("utf-8", "replace")
            self.filename = filename.replace("\x00", "")
        elif self._name != b"purpose":
            name = self._name.decode("utf-8", "replace")[:80]
            raise invalid([Problem(name or "(no name)", "unknown part; known: file, purpose")])

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if self._name == b"file":
            self.receiver.take(data[start:end])
            return
        field = self._fields.setdefault(self._name.decode(), bytearray())
        field += data[start:end]
        if len(field) > _MAX_FIELD:
            raise invalid([Problem("purpose", "is too long")])

    def _on_end(self) -> None:
        self._ended = True


async def receive(chunks: AsyncIterator[bytes], form: Form, store: Store) -> Uploaded:
    """Feeds a request's body to the form. Raises Refusal, OSError; the caller discards the upload then."""
    batch: list[bytes] = []
    size = whole = 0
    async for chunk in chunks:
        batch.append(chunk)
        # Also what is no part of the file: a form may go on for ever before its parts, and after them.
        whole += len(chunk)
        if whole > form.receiver.limit + FORM_OVERHEAD:
            raise too_large(form.receiver.limit)
        size += len(chunk)
        if size >= _BATCH:
            await store.run(form.take, b"".join(batch))
            batch, size = [], 0
    if batch:
        await store.run(form.take, b"".join(batch))
    return await store.run(form.end)
