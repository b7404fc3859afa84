"""The text forms of an endpoint."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.client.endpoints import ENDPOINTS_MAX, check_endpoints, parse_endpoint, parse_endpoints


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:2379", "127.0.0.1:2379"),
        (" http://localhost:80/ ", "localhost:80"),
        ("[::1]:2379", "[::1]:2379"),
        ("http://[::1]:2379", "[::1]:2379"),
        ("n-1.example.org:02379", "n-1.example.org:2379"),
    ],
)
def test_accepted(text: str, address: str) -> None:
    assert parse_endpoint(text) == address


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not host:port"),
        ("localhost", "not host:port"),
        (":2379", "not host:port"),
        ("::1:2379", "not host:port"),
        ("localhost:", "port ''"),
        ("localhost:0", "port '0'"),
        ("localhost:65536", "port '65536'"),
        ("localhost:-1", "port '-1'"),
        ("localhost:\u0662", "port"),
        ("https://localhost:2379", "TLS"),
        ("unix:///run/x.sock", "unknown scheme"),
        ("http://localhost/path:1", "not a host name"),
        ("http://user@host:1", "not a host name"),
        ("a b:1", "not a host name"),
    ],
)
def test_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match="endpoint") as caught:
        parse_endpoint(text)
    assert reason in str(caught.value)


def test_lists() -> None:
    assert parse_endpoints("a:1, b:2,,a:1,") == ("a:1", "b:2")
    with pytest.raises(ValueError, match="no endpoint"):
        parse_endpoints(" , ")
    with pytest.raises(ValueError, match="at most"):
        check_endpoints(f"host{number}:1" for number in range(ENDPOINTS_MAX + 1))


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    try:
        host, _, port = parse_endpoint(text).rpartition(":")
    except ValueError:
        return
    assert host and 1 <= int(port) <= 65535
