"""Where in which bucket a store lies: `s3://bucket/prefix`."""

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


def is_object_store(url: str) -> bool:
    """Whether a store's URL names a bucket, and no folder."""
    return urlsplit(url).scheme == "s3"


@dataclass(frozen=True)
class Place:
    """A bucket, and what all keys of the store begin with there: nothing, or a path that ends with a slash."""

    bucket: str
    prefix: str = ""

    @classmethod
    def of(cls, url: str) -> "Place":
        """Reads a URL. Raises ValueError with what is wrong; it never repeats what may be a secret in it."""
        parts = urlsplit(url)
        if parts.scheme != "s3":
            raise ValueError("must be s3://bucket, or s3://bucket/prefix")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError(
                "must be s3://bucket/prefix and no more: credentials and the endpoint come from the AWS_* variables"
            )
        if not _BUCKET.fullmatch(parts.netloc):
            raise ValueError(f"{parts.netloc!r} is no bucket's name: must be s3://bucket, or s3://bucket/prefix")
        prefix = unquote(parts.path).strip("/")
        if prefix and not _is_plain(prefix):
            raise ValueError("the prefix must be a plain path, without `..` and empty parts")
        return cls(parts.netloc, f"{prefix}/" if prefix else "")

    @property
    def url(self) -> str:
        """As it is written, without a slash at its end."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def key(self, path: str) -> str:
        """The bucket's key of a path in the store. Raises ValueError for one that is not plain."""
        if not _is_plain(path):
            raise ValueError(f"{path!r} is no path inside the store")
        return self.prefix + path

    def path(self, key: str) -> str:
        """The path in the store of one of its keys."""
        return key.removeprefix(self.prefix)

    def path_of_url(self, url: str) -> str | None:
        """The path in the store that a URL below this one names; None: it is not below it."""
        below = self.url + "/"
        path = url.removeprefix(below)
        return path if url.startswith(below) and _is_plain(path) else None


def _is_plain(path: str) -> bool:
    return (
        bool(path)
        and str(PurePosixPath(path)) == path
        and not path.startswith("/")
        and ".." not in path.split("/")
        and path != "."
        # Neither a listing nor a removal, which are XML, could name such a key.
        and not any(ord(character) < ord(" ") or character == "\x7f" for character in path)
    )
