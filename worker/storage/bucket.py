"""Calls to one bucket: bounded in time, tried again for a while where that may help, their failures told apart."""

import os
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import tenacity

from worker.storage.failures import Away, Full, NotThere, Refused, StorageFailure
from worker.storage.options import Options
from worker.storage.place import Place

T = TypeVar("T")

# Of a call, beside what its body takes at the slowest speed that is put up with, in bytes a second.
_CALL, _SLOWEST = 60.0, 64 * 1024
_LONGEST_WAIT = 5.0
_REFUSED = {
    "AccessDenied",
    "AccountProblem",
    "AllAccessDisabled",
    "AuthorizationHeaderMalformed",
    "CredentialsNotSupported",
    "ExpiredToken",
    "ExpiredTokenException",
    "Forbidden",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidSecurity",
    "InvalidToken",
    "NotSignedUp",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
    "UnauthorizedAccess",
    "401",
    "403",
}
_FULL = {"InsufficientCapacity", "InsufficientStorage", "NoSpaceLeft", "QuotaExceeded", "StorageFull", "507"}
_NOT_THERE = {"404", "NoSuchKey", "NoSuchUpload"}
# botocore's own errors, by their names.
_NO_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "NoAuthTokenError",
    "TokenRetrievalError",
    "ProfileNotFound",
    "NoRegionError",
}
# Another answer to a malformed request would be the same one.
_FINAL_ABOVE, _FINAL_BELOW = 400, 500
_AGAIN = {
    "BadDigest",
    "IncompleteBody",
    "OperationAborted",
    "RequestTimeout",
    "RequestTimeoutException",
    "SlowDown",
    "XAmzContentChecksumMismatch",
    "XAmzContentSHA256Mismatch",
    "408",
    "429",
}
_SKEWED = "RequestTimeTooSkewed"


class Bucket:
    """One bucket, from any thread. Raises Away, Refused, Full, NotThere, or StorageFailure for anything else."""

    def __init__(self, place: Place, options: Options):
        """Connects to nothing yet."""
        self.place, self.options = place, options

    @cached_property
    def _files(self) -> Any:
        # Slow to import: most attempts and most commands have nothing to do with a bucket.
        import s3fs

        if (bundle := os.environ.get("AWS_CA_BUNDLE")) and not Path(bundle).is_file():
            raise Refused(f"AWS_CA_BUNDLE: there is no file {bundle}")
        options = self.options
        files = s3fs.S3FileSystem(
            skip_instance_cache=True,
            use_listings_cache=False,
            config_kwargs={
                "retries": {"mode": "standard", "max_attempts": 3 if options.patience else 1},
                "connect_timeout": options.connect_timeout,
                "read_timeout": options.read_timeout,
                "max_pool_connections": 4 * options.at_once,
                # Of another's server a name for each bucket is seldom known.
                "s3": {"addressing_style": "path" if _own_endpoint() else "auto"},
            },
        )
        # Its own are for fewer failures than the ones here, and would multiply with them.
        files.retries = 1
        return files

    def call(self, method: str, *, sent: int = 0, **arguments: Any) -> dict[str, Any]:
        """One call of the S3 API, by botocore's name. `sent`: the bytes of its body."""
        within = _CALL + sent / _SLOWEST
        files = self._files
        return self._patiently(
            lambda: _sync(files.loop, files._call_s3, method, timeout=within, Bucket=self.place.bucket, **arguments),
            moves=sent > 0,
        )

    def get(self, key: str, start: int, end: int) -> bytes:
        """The bytes of an object from `start` to before `end`, fewer where it ends before. `end` is above `start`."""
        within = _CALL + (end - start) / _SLOWEST

        async def read() -> bytes:
            try:
                answer = await self._files._call_s3(
                    "get_object", Bucket=self.place.bucket, Key=key, Range=f"bytes={start}-{end - 1}"
                )
            except OSError as error:
                if _code(error)[0] in ("InvalidRange", "416"):
                    return b""
                raise
            async with answer["Body"] as body:
                content: bytes = await body.read()
            return content

        content: bytes = self._patiently(lambda: _sync(self._files.loop, read, timeout=within), moves=True)
        return content

    def pages(self, method: str, field: str, **arguments: Any) -> Iterator[dict[str, Any]]:
        """The entries under `field` in all pages of a listing."""
        more: dict[str, Any] = {}
        while True:
            page = self.call(method, **arguments, **more)
            yield from page.get(field, [])
            if not page.get("IsTruncated"):
                return
            if method == "list_objects_v2":
                more = {"ContinuationToken": page["NextContinuationToken"]}
            elif method == "list_parts":
                more = {"PartNumberMarker": int(page["NextPartNumberMarker"])}
            else:
                more = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page.get("NextUploadIdMarker", "")}

    def _patiently(self, call: Callable[[], T], *, moves: bool) -> T:
        def is_over(state: tenacity.RetryCallState) -> bool:
            return self.options.given_up() or (state.seconds_since_start or 0.0) >= self.options.patience

        trying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(Away),
            wait=tenacity.wait_random_exponential(multiplier=0.2, max=_LONGEST_WAIT),
            stop=is_over,
            sleep=self._sleep,
            reraise=True,
        )
        answer: T = trying(self._once, call, moves)
        return answer

    def _sleep(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0 and not self.options.given_up():
            time.sleep(min(left, 0.1))

    def _once(self, call: Callable[[], T], moves: bool) -> T:
        try:
            answer = call()
            if moves:
                self.options.moved()
            return answer
        except Exception as error:  # botocore's errors have no ancestor but this one
            raise self._failure(error) from None

    def _failure(self, error: Exception) -> StorageFailure:
        """What an error means. Its own text is not repeated: it may quote what was sent."""
        where = f"the store {self.place.url}"
        cause: BaseException | None = error
        while cause is not None:
            if type(cause).__name__ in _NO_CREDENTIALS:
                return Refused(f"{where} needs credentials, and there are none: set the AWS_* variables")
            cause = cause.__cause__
        code, status = _code(error)
        if code in _FULL or code.endswith(("StorageFull", "QuotaExceeded")):
            return Full(f"{where} has no room left ({code})")
        if code == "NoSuchBucket":
            return Refused(f"{where}: there is no bucket {self.place.bucket}")
        if code in _NOT_THERE:
            return NotThere(f"{where} has no such object ({code})")
        if code == _SKEWED:
            # Clocks are put right, and another node has another one.
            return Away(f"{where} and this machine do not have the same time ({code})")
        if code in _REFUSED:
            return Refused(f"{where} refuses the credentials ({code})")
        if code and code not in _AGAIN and _FINAL_ABOVE <= status < _FINAL_BELOW:
            return StorageFailure(f"{where} does not take this call ({code})")
        if "CERTIFICATE_VERIFY_FAILED" in (said := str(error)):
            if "expired" in said or "not yet valid" in said:
                # It is renewed, or a clock is put right.
                return Away(f"{where} has a certificate whose time is over or has not come")
            if "mismatch" in said:
                return Refused(f"{where} has a certificate for another name than AWS_ENDPOINT_URL's")
            return Refused(f"{where} has a certificate that is not trusted; AWS_CA_BUNDLE names its authority's file")
        return Away(f"{where} does not answer ({code or type(error).__name__})")


def _code(error: BaseException) -> tuple[str, int]:
    """The code and the HTTP status of the answer that an error was made from; of none, an empty code."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(answer := getattr(seen, "response", None), dict):
            status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return str(answer.get("Error", {}).get("Code", "")) or str(status), int(status)
        seen = seen.__cause__
    return "", 0


def _sync(loop: Any, call: Any, *arguments: Any, **named: Any) -> Any:
    from fsspec.asyn import sync

    return sync(loop, call, *arguments, **named)


def _own_endpoint() -> bool:
    return bool(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"))
