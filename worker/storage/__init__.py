"""The store where it is a bucket of an object store: what lies there, put there and fetched whole or not at all.

Imports neither the control plane nor the worker, only the contract; and s3fs once the first call is made.
"""

from worker.storage.failures import Away, Full, NotThere, Refused, StorageFailure
from worker.storage.objects import Entry, Object, ObjectStore
from worker.storage.options import Options
from worker.storage.place import Place, is_object_store
from worker.storage.uploads import Upload

__all__ = [
    "Away",
    "Entry",
    "Full",
    "NotThere",
    "Object",
    "ObjectStore",
    "Options",
    "Place",
    "Refused",
    "StorageFailure",
    "Upload",
    "is_object_store",
]
