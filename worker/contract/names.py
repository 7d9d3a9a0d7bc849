"""Names as Kubernetes takes them: what is refused here would be refused by its API server, much later."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_MARKED = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_LONGEST_SUBDOMAIN = 253
_LONGEST_LABEL = 63


def dns_label(value: str) -> str:
    """A DNS label (RFC 1123). Raises ValueError with what would be right."""
    if not _LABEL.fullmatch(value):
        raise ValueError("write 1 to 63 lower-case letters, digits and dashes, with no dash at either end")
    return value


def dns_subdomain(value: str) -> str:
    """A DNS name of one or more labels. Raises ValueError with what would be right."""
    if len(value) > _LONGEST_SUBDOMAIN or not _SUBDOMAIN.fullmatch(value):
        raise ValueError("write at most 253 lower-case letters, digits, dashes and dots; each part ends in no dash")
    return value


def label_key(value: str) -> str:
    """A label's key: `name`, or `dns.name/name`. Raises ValueError with what would be right."""
    prefix, slash, name = value.rpartition("/")
    if slash:
        try:
            dns_subdomain(prefix)
        except ValueError:
            raise ValueError("what is before the `/` of a key is a DNS name, such as example.com") from None
    if not _MARKED.fullmatch(name):
        raise ValueError(
            "the name of a key has 1 to 63 letters, digits, dashes, underscores and dots, with no mark at either end"
        )
    return value


def label_value(value: str) -> str:
    """A label's value. Raises ValueError with what would be right."""
    if value and not _MARKED.fullmatch(value):
        raise ValueError("write at most 63 letters, digits, dashes, underscores and dots, with no mark at either end")
    return value


def _queue(value: str) -> str:
    # The name of an object that goes into a label: each of the two has its bounds.
    if len(value) > _LONGEST_LABEL:
        raise ValueError("write at most 63 characters")
    return dns_subdomain(value)


DnsLabel = Annotated[str, AfterValidator(dns_label)]
DnsSubdomain = Annotated[str, AfterValidator(dns_subdomain)]
LabelKey = Annotated[str, AfterValidator(label_key)]
LabelValue = Annotated[str, AfterValidator(label_value)]
LabelledName = Annotated[str, AfterValidator(_queue), Field(examples=["team-a"])]
