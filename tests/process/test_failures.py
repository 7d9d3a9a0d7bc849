"""What an exception in a rank means for its attempt."""

import errno

import pytest

from worker.contract.protocol import Exit
from worker.errors import BadData, StoreFull, WorkerFailure
from worker.run import failure_of

pytestmark = pytest.mark.quick


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except BaseException as caught:
        return caught


def test_a_failure_with_a_name_stays_what_it_is() -> None:
    failure = BadData("line 7: no text")
    assert failure_of(raised(failure)) is failure


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: 8 bytes"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("unable to mmap 8 bytes: Cannot allocate memory (12)"),
        type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
)
def test_every_way_to_run_out_of_memory_says_what_to_change(error: BaseException) -> None:
    failure = failure_of(raised(error))
    assert (failure.exit, failure.reason) == (Exit.OUT_OF_MEMORY, "OutOfMemory")
    assert "micro_batch" in failure.message


def test_memory_that_ran_out_behind_another_error_is_named() -> None:
    assert failure_of(raised(ValueError("no batch"), MemoryError())).reason == "OutOfMemory"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named(number: int) -> None:
    assert isinstance(failure_of(raised(OSError(number, "full"))), StoreFull)


def test_a_full_disk_behind_another_error_is_named() -> None:
    behind = raised(RuntimeError("PytorchStreamWriter failed writing file data/0"), OSError(errno.ENOSPC, "full"))
    assert isinstance(failure_of(behind), StoreFull)
    assert isinstance(failure_of(raised(RuntimeError("iostream error: No space left on device"))), StoreFull)


def test_a_full_disk_is_named_though_torch_says_only_that_it_could_not_write() -> None:
    import torch

    with pytest.raises(RuntimeError) as caught:
        torch.save(torch.zeros(100_000), "/dev/full")
    assert isinstance(failure_of(caught.value), StoreFull), caught.value


def test_an_error_that_only_follows_a_full_disk_is_still_a_full_disk() -> None:
    try:
        try:
            raise OSError(errno.ENOSPC, "full")
        finally:
            raise RuntimeError("unexpected pos 64 vs 0")
    except RuntimeError as error:
        assert isinstance(failure_of(error), StoreFull)


def test_any_other_error_carries_the_tail_of_its_traceback() -> None:
    failure = failure_of(raised(KeyError("lm_head.weight")))
    assert type(failure) is WorkerFailure
    assert failure.exit == Exit.FAILED
    assert "KeyError: 'lm_head.weight'" in failure.message
    assert "test_failures.py" in failure.message


def test_a_library_that_leaves_the_process_is_an_error() -> None:
    assert failure_of(raised(SystemExit(0))).exit == Exit.FAILED
