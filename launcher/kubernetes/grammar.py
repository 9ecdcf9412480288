"""Names, labels and quantities as Kubernetes writes them. The empty text is no name."""

import re
from decimal import Decimal
from typing import Any

LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_VALUE = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_QUANTITY = re.compile(r"(?P<number>[+-]?(\d+(\.\d*)?|\.\d+))(?P<suffix>[KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+)?")
_DECIMAL = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}


def dns_label(text: str) -> bool:
    """Whether a container, a volume, a namespace or a part of a host name may be called that (RFC 1123)."""
    return re.fullmatch(LABEL, text) is not None


def service_name(text: str) -> bool:
    """Whether a Service may be called that: a DNS label that begins with a letter (RFC 1035)."""
    return dns_label(text) and text[0].isalpha()


def dns_name(text: str) -> bool:
    """Whether most objects may be called that: DNS labels with dots between them."""
    return len(text) <= 253 and all(dns_label(part) for part in text.split("."))


def label_key(text: str) -> bool:
    """Whether a label or an annotation may be called that, with or without a `domain/` in front."""
    domain, slash, name = text.rpartition("/")
    return re.fullmatch(_VALUE, name) is not None and (not slash or dns_name(domain))


def label_value(text: str) -> bool:
    """Whether a label may have that value."""
    return text == "" or re.fullmatch(_VALUE, text) is not None


def env_name(text: str) -> bool:
    """Whether an environment variable may be called that."""
    return re.fullmatch(r"[-._a-zA-Z][-._a-zA-Z0-9]*", text) is not None


def port_name(text: str) -> bool:
    """Whether a container's port may be called that."""
    letters = any(letter.isalpha() for letter in text)
    return len(text) <= 15 and letters and "--" not in text and dns_label(text)


def quantity(text: Any) -> Decimal | None:
    """The value of a quantity such as 500m, 2, 1e3 or 16Gi; None if it is not one."""
    found = _QUANTITY.fullmatch(str(text)) if isinstance(text, str | int) else None
    if not found:
        return None
    number, suffix = Decimal(found["number"]), found["suffix"] or ""
    if suffix in _BINARY:
        return number * Decimal(1024) ** _BINARY[suffix]
    return number.scaleb(_DECIMAL[suffix] if suffix in _DECIMAL else int(suffix[1:] or 0))


def gibibytes(amount: float) -> str:
    """A quantity of so many GiB."""
    return f"{max(1, round(amount * 1024))}Mi"
