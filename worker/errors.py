"""The ways in which an attempt ends other than well, each with its exit code and the word for its reason."""

import errno

from worker.contract.protocol import Exit


class WorkerFailure(Exception):
    """An end with a name: `exit` is the process's code, `reason` one CamelCase word, `message` what to do."""

    exit = Exit.FAILED
    reason = "WorkerError"

    def __init__(self, message: str):
        super().__init__(message)
        self.message = message


class BadSpec(WorkerFailure):
    """A spec that turned out to be impossible: a model that is not there, a length that the model does not have."""

    exit = Exit.BAD_SPEC
    reason = "InvalidSpec"


class BadData(WorkerFailure):
    """Data that cannot be trained on, with the line where it can be told."""

    exit = Exit.BAD_DATA
    reason = "InvalidData"


class Diverged(WorkerFailure):
    """A loss or a gradient that is no number any more."""

    exit = Exit.DIVERGED
    reason = "Diverged"


class OutOfMemory(WorkerFailure):
    """The memory does not suffice, with what to change in the spec."""

    exit = Exit.OUT_OF_MEMORY
    reason = "OutOfMemory"


class PausedByGuard(WorkerFailure):
    """A guard of the spec wants a person to look before it goes on; all has been saved."""

    exit = Exit.STOPPED
    reason = "PausedByGuard"


class Stopped(WorkerFailure):
    """The attempt ends because it was asked to, having saved what it was asked to save."""

    exit = Exit.STOPPED
    reason = "Stopped"

    def __init__(self, message: str = "stopped when asked"):
        super().__init__(message)


class ServiceAway(WorkerFailure):
    """A reward service has not answered for as long as the spec would wait; what was done until then is saved."""

    reason = "ServiceAway"


class Interrupted(Exception):
    """This rank was asked to stop amid work of its own; what all ranks do about it they agree on where they meet."""


class StoreFull(WorkerFailure):
    """The store has no room left; checkpoints that were whole before still are."""

    reason = "StoreFull"


# torch's own errors, told by their names and words: a rank that needs no torch must not import it to find out. On hosts
# its allocators raise a plain RuntimeError.
_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "Cannot allocate memory",
    "not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or what it was raised from, says that memory did not suffice."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError) or type(seen).__name__ == "OutOfMemoryError":
            return True
        if isinstance(seen, RuntimeError) and any(words in str(seen) for words in _OUT_OF_MEMORY):
            return True
        seen = seen.__cause__
    return False


_FULL = {errno.ENOSPC, errno.EDQUOT}
# torch's writers keep of the system's error its text at best, and of a failed write no more than that it failed.
_WRITES_THAT_FAILED = ("No space left on device", "iostream error", "inline_container")


def is_store_full(error: BaseException) -> bool:
    """Whether an error, or what it was raised from, says that a disk or a quota is full."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _FULL:
            return True
        if any(words in str(seen) for words in _WRITES_THAT_FAILED):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
