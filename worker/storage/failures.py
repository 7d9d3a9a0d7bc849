"""The ways in which an object store fails, told apart by what to do about them. None says a secret."""

import errno


class StorageFailure(OSError):
    """Something that an object store would not or could not do, in a sentence."""


class Away(StorageFailure):
    """It does not answer, or not as it should, and has not for as long as was to be waited: later it may."""

    def __init__(self, message: str):
        super().__init__(errno.EHOSTUNREACH, message)


class Refused(StorageFailure):
    """It refuses these credentials, or has no such bucket: it will not do it later either."""

    def __init__(self, message: str):
        super().__init__(errno.EACCES, message)


class Full(StorageFailure):
    """It has no room, or a quota is used up."""

    def __init__(self, message: str):
        super().__init__(errno.EDQUOT, message)


class NotThere(StorageFailure, FileNotFoundError):
    """There is no such object."""

    def __init__(self, message: str):
        super().__init__(errno.ENOENT, message)
