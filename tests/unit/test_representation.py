"""Accept-Encoding as RFC 9110 (section 12.5.3) means it, of the codings that there are."""

import pytest

from services.gateway.representation import preferred_coding


@pytest.mark.parametrize(
    ("header", "coding"),
    [
        ("", "identity"),
        ("gzip", "gzip"),
        ("gzip, deflate, br, zstd", "zstd"),
        ("GZIP", "gzip"),
        ("zstd;q=0.2, gzip;q=0.8", "gzip"),
        ("gzip; Q=0.5 ,zstd ; q=0.5", "zstd"),
        ("br;q=1.0, gzip;q=0.1", "gzip"),
        ("gzip;q=0, zstd;q=0.000", "identity"),
        ("gzip;q=0.5, identity", "identity"),
        ("identity;q=0, gzip;q=0.5", "gzip"),
        ("*", "zstd"),
        ("zstd;q=0, *;q=0.1", "gzip"),
        ("*;q=0", "identity"),
        ("br, deflate", "identity"),
        ("x-gzip, gzipped", "identity"),
        ("gzip;q=2, zstd;q=-1, gzip zstd, ;q=1, \0", "identity"),
        (", ,gzip;q=1.", "gzip"),
    ],
)
def test_a_client_gets_the_coding_that_it_likes_best(header: str, coding: str) -> None:
    assert preferred_coding(header) == coding
