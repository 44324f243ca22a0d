"""Sizes and durations as people write them."""

import pytest

from hwmodel.errors import InputError
from mpsearch.request.units import format_bytes, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.5MB", 1_500_000),
        ("1.5 mb", 1_500_000),
        ("1.1MB", 1_100_000),  # 1.1 * 1e6 is above 1100000 in floats
        ("0.29MB", 290_000),
        ("1MiB", 2**20),
        ("512KiB", 2**19),
        ("12kB", 12_000),
        ("2GB", 2 * 10**9),
        ("1GiB", 2**30),
        ("17B", 17),
        (" 1500000 ", 1_500_000),
        (".5kB", 500),
        ("1.9", 1),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize(
    "text", ["0", "0MB", "0.5B", "1.5XB", "-3MB", "nan", "inf", "", "MB", "1.5.2MB", "1 5MB", "1e6", "1.5MB/s"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_size(text)
    assert repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"), [("3ms", 0.003), ("1.5 s", 1.5), ("20us", 2e-5), ("20µs", 2e-5), ("7ns", 7e-9)]
)
def test_durations(text: str, expected: float) -> None:
    assert parse_duration(text) == expected


@pytest.mark.parametrize("text", ["0ms", "3", "-3ms", "nan", "3 minutes", "", "ms", "3KB"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_duration(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (1_234, "1.23 kB"),
        (12_345, "12.3 kB"),
        (999_600, "1.00 MB"),
        (1_500_000, "1.50 MB"),
        (150_000_000, "150 MB"),
        (9_996_000, "10.0 MB"),
        (2 * 10**9, "2.00 GB"),
    ],
)
def test_formatted_bytes(count: int, expected: str) -> None:
    assert format_bytes(count) == expected
