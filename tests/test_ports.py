"""Which addresses can be had: what others listen on cannot, what is ours already is not asked for again."""

import socket
from collections.abc import Iterator

import pytest

from forwarder.config import HostPort, Settings
from forwarder.net.listening import bound_socket
from forwarder.node import NodeError
from forwarder.ports import check_free


def asking_for(*listen: HostPort) -> Settings:
    values = {"hostname": "mx.test", "mx": {"listen": list(listen)}, "api": {"listen": ""}}
    return Settings.model_validate(values)


@pytest.fixture
def taken() -> Iterator[int]:
    """The port of a listener on 127.0.0.1 that would share it."""
    with bound_socket(HostPort("127.0.0.1", 0)) as opened:
        opened.listen()
        yield opened.getsockname()[1]


def test_a_port_that_somebody_listens_on_is_refused_though_it_would_be_shared(taken: int) -> None:
    with bound_socket(HostPort("127.0.0.1", taken)):
        pass  # it would
    with pytest.raises(NodeError, match=f"cannot listen on 127.0.0.1:{taken}"):
        check_free(asking_for(HostPort("127.0.0.1", taken)))


@pytest.mark.parametrize(
    ("host", "own", "free"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("0.0.0.0", "127.0.0.1", True),
        ("127.0.0.1", "0.0.0.0", True),
        ("localhost", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("127.0.0.1", "::", False),
    ],
)
def test_what_overlaps_with_ours_is_not_asked_for(taken: int, host: str, own: str, free: bool) -> None:
    wanted, ours = asking_for(HostPort(host, taken)), [HostPort(own, taken)]
    if free:
        check_free(wanted, ours=ours)
    else:
        with pytest.raises(NodeError):
            check_free(wanted, ours=ours)


def test_another_port_of_ours_says_nothing(taken: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(NodeError):
        check_free(
            asking_for(HostPort("127.0.0.1", taken)), ours=[HostPort("127.0.0.1", other.getsockname()[1])]
        )


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("127.0.0.1", "127.1", True),
        ("LOCALHOST", "localhost", True),
        ("::1", "0:0::1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("0.0.0.0", "127.0.0.1", False),  # the system gives each its own
    ],
)
def test_one_address_under_two_names_is_not_for_two_listeners(one: str, other: str, same: bool) -> None:
    with bound_socket(HostPort("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    wanted = asking_for(HostPort(one, port), HostPort(other, port))
    if not same:
        check_free(wanted)
        return
    with pytest.raises(NodeError, match="are one address"):
        check_free(wanted)


def test_any_port_may_be_asked_for_twice() -> None:
    check_free(asking_for(HostPort("127.0.0.1", 0), HostPort("127.1", 0)))
