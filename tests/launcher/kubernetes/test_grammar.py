"""Names and quantities: ours against the Kubernetes client's, and against the schemas that ship the rules."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparta.launcher.kubernetes.grammar import (
    dns_label,
    dns_name,
    env_name,
    gibibytes,
    label_key,
    label_value,
    port_name,
    quantity,
    service_name,
)

SUFFIXES = ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"]
numbers = st.decimals(min_value=0, max_value=10**6, places=3)
label = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True)


@given(numbers, st.sampled_from(SUFFIXES))
def test_a_quantity_is_worth_what_kubernetes_says(number: Decimal, suffix: str) -> None:
    from kubernetes.utils.quantity import parse_quantity

    text = f"{number}{suffix}"
    assert quantity(text) == parse_quantity(text)


@given(st.integers(0, 10**6), st.integers(-9, 18))
def test_a_quantity_may_have_an_exponent(number: int, exponent: int) -> None:
    assert quantity(f"{number}e{exponent}") == Decimal(number).scaleb(exponent)


@pytest.mark.parametrize(
    "wrong",
    ["", "m", "16 Gi", "16GB", "16gi", "0x10", "1.2.3", "1,5", "ten", None, 1.5, [], "1e", "inf", "nan"],
)
def test_anything_else_is_no_quantity(wrong: object) -> None:
    assert quantity(wrong) is None


@given(st.floats(0.001, 10_000))
def test_gibibytes_are_a_quantity_of_so_many(amount: float) -> None:
    value = quantity(gibibytes(amount))
    assert value is not None
    assert abs(value - Decimal(amount) * 1024**3) <= 1024**2


@given(label)
def test_a_label_names_everything_small(text: str) -> None:
    assert dns_label(text)
    assert dns_name(text)
    assert dns_name(f"{text}.{text}")
    assert label_value(text)
    assert label_key(text)
    assert label_key(f"{text}/{text}")
    assert service_name(text) == text[0].isalpha()


@given(label, st.sampled_from(["", "-", "_", " ", "A", "$", "/", "é", "\n"]))
def test_a_label_ends_where_it_ends(text: str, wrong: str) -> None:
    assert dns_label(text + wrong) == (wrong == "")
    assert dns_label(wrong + text) == (wrong == "")


def test_names_have_a_length() -> None:
    assert dns_label("a" * 63)
    assert not dns_label("a" * 64)
    assert dns_name(".".join(["a" * 62] * 4))
    assert not dns_name(".".join(["a" * 63] * 4))
    assert not dns_name("a..b")
    assert label_value("")
    assert not label_value("a" * 64)
    assert not label_key("")
    assert not label_key("/name")
    assert not label_key("UPPER.case/name")


@pytest.mark.parametrize(
    "name, good", [("metrics-0", True), ("9400", False), ("a--b", False), ("a" * 16, False)]
)
def test_ports_have_short_names_with_a_letter(name: str, good: bool) -> None:
    assert port_name(name) == good


@pytest.mark.parametrize(
    "name, good", [("A_b.c-1", True), ("1A", False), ("A B", False), ("A=B", False), ("", False)]
)
def test_variables_begin_with_no_digit(name: str, good: bool) -> None:
    assert env_name(name) == good
