"""Where references and stores lie on this machine."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from worker.errors import BadData, BadSpec


def local_path(location: str) -> Path:
    """The path of a `file://` URL or of a plain path. Raises BadData for any other URL."""
    parts = urlsplit(location)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    if parts.scheme:
        raise BadData(f"{location}: only files of this machine can be read, by a path or file://")
    return Path(location)


def store_path(url: str) -> Path:
    """The folder of a `file://` store. Raises BadSpec for any other."""
    parts = urlsplit(url)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise BadSpec(f"the store {url} is not one that this worker can reach: it must be file:///a/folder")
    return Path(unquote(parts.path))
