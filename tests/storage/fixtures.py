"""The S3 server that all tests of a session share."""

from collections.abc import Iterator

import pytest

from tests.storage.server import S3, Line, serving


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """A real S3 server, started when the first test asks for one. Its variables are not set: `s3.environment`."""
    with serving(tmp_path_factory.mktemp("s3") / "server.log") as server:
        yield server


@pytest.fixture
def s3_line(s3: S3) -> Iterator[Line]:
    """A line to the server that the test may disturb; its callers use `s3_line.s3`."""
    line = Line(s3)
    yield line
    line.close()
