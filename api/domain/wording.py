"""How facts are put to a person: quotations, spans of time, lists of names."""

from collections.abc import Iterable

_LONGEST = 600


def quoted(text: str, longest: int = _LONGEST) -> str:
    """Another's words in quotation marks, on one line. Of many lines, such as a traceback, the first and the last."""
    lines = [line for each in text.splitlines() if (line := " ".join(each.split()))]
    if not lines:
        return ""
    said = lines[0] if len(lines) == 1 or lines[-1] in lines[0] else f"{lines[0]} … {lines[-1]}"
    return f"“{said if len(said) <= longest else said[: longest - 1].rstrip() + '…'}”"


def span(seconds: float) -> str:
    """Seconds in a unit that people read: `40 s`, `12 min`, `3 h`, `5 days`."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def listed(names: Iterable[str], joint: str = "and") -> str:
    """`a`, `a and b`, or `a, b and c`."""
    *most, last = list(names) or [""]
    return f"{', '.join(most)} {joint} {last}" if most else last


def sentence(text: str) -> str:
    """The text with a capital at its beginning (unless a field's or a command's name is there) and a full stop."""
    text = text.strip()
    first = text.partition(" ")[0].rstrip(",:;")
    begun = text[:1].upper() + text[1:] if first.isalpha() else text
    return begun + ("" if text.endswith((".", "!", "?", "”")) else ".")


def amid(text: str) -> str:
    """A sentence as it stands after a colon."""
    return text[:1].lower() + text[1:]
