"""GGUF files as folders that transformers loads: converted once, kept by the file's hash."""

import contextlib
import fcntl
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from worker import ahead, checkpoint
from worker.contract import manifest
from worker.errors import BadSpec

_MAGIC = b"GGUF"
# Seconds between two looks at whether another is done converting.
_LOOK_EVERY = 0.2
# Seconds after which another machine's unfinished folder is nobody's.
_GIVEN_UP = 24 * 3600.0


def gguf_in(path: Path) -> Path | None:
    """The GGUF file that `path` is, or the only one in the folder that it is; None: there is none.

    A folder with a config.json is a model as it stands. Raises BadSpec where a folder holds several.
    """
    if path.is_file():
        with path.open("rb") as file:
            return path if file.read(len(_MAGIC)) == _MAGIC else None
    if (path / "config.json").is_file():
        return None
    found = sorted(path.glob("*.gguf"))
    if len(found) > 1:
        raise BadSpec(f"stage.model: {path} holds several GGUF files; name one: {', '.join(f.name for f in found)}")
    return found[0] if found else None


def converted(
    gguf: Path, cache: Path, sha256: str | None = None, waiting: Callable[[], None] = lambda: None
) -> tuple[Path, str | None]:
    """The folder in `cache` with the model in fp32 safetensors and its tokenizer, and a note if it was made just now.

    `sha256` is the file's, where the caller has just found it out. Whoever comes while another converts waits for it,
    and calls `waiting` now and then. A folder that is not what its manifest says is made anew. Raises BadSpec.
    """
    final = cache / (sha256 or manifest.file_sha256(gguf))
    if _whole(final):
        return final, None
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / f".{final.name}.lock", waiting):
        if _whole(final):
            return final, None
        _clear(final)
        # A name of this machine's own: not every file system's locks are known to all machines that share it. What a
        # conversion that was killed here has left has that name too, and is removed.
        temporary = checkpoint.temporary_for(final.with_name(f"{final.name}.{socket.gethostname()}"))
        try:
            _convert(gguf, temporary)
            _put(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return final, f"{gguf.name} was converted to safetensors, once for all jobs."


def _whole(folder: Path) -> bool:
    """Whether a converted model is there with all its bits: others write on the same disk, and bits flip."""
    return ahead.whole(folder)


@contextlib.contextmanager
def _locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Keeps others from converting the same: those of this machine, and of all where the file system can."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _wait_for(lock, waiting)
        yield
    finally:
        os.close(lock)


def _wait_for(lock: int, waiting: Callable[[], None]) -> None:
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            time.sleep(_LOOK_EVERY)
        except OSError:
            # Without locks several convert at once: that costs time alone, since the first folder that is whole stays.
            return None


def _clear(final: Path) -> None:
    """Removes what killed conversions have left on other machines, once nobody can still be at it there."""
    for left in final.parent.glob(f"{checkpoint.TEMPORARY}{final.name}*"):
        with contextlib.suppress(OSError):
            if left.stat().st_mtime < time.time() - _GIVEN_UP:
                shutil.rmtree(left, ignore_errors=True)


def _put(temporary: Path, final: Path) -> None:
    """Seals the folder, unless another machine has done so meanwhile. Raises OSError."""
    try:
        checkpoint.seal(temporary, final)
    except OSError:
        if not _whole(final):
            raise


def _convert(gguf: Path, folder: Path) -> None:
    where, name = str(gguf.parent), gguf.name
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name)
        # Its weights are 4 to 8 bits wide: fp32 holds what they stand for without loss.
        model = AutoModelForCausalLM.from_pretrained(where, gguf_file=name, dtype=torch.float32)
    except MemoryError:
        raise
    except Exception as error:  # a broken file breaks readers in as many ways as there are bytes
        raise BadSpec(f"stage.model: {name} cannot be read: {error}") from None
    # The weights are whole now; told that they are still quantized, save_pretrained refuses.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    # The name of where it was made is nobody's concern.
    model.config._name_or_path = name
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
