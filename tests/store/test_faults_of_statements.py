"""What a code of PostgreSQL means depends on where it was said: about a statement's values, or about the connection."""

import pytest
from asyncpg.exceptions import InvalidParameterValueError
from sqlalchemy.exc import DBAPIError

from forwarder.store.faults import trouble_of


@pytest.mark.parametrize(
    ("statement", "is_trouble"),
    [("INSERT INTO messages VALUES ($1)", False), (None, True)],  # None: while connecting
)
def test_an_invalid_value_is_an_item_s_fault_or_an_option_s(statement: str | None, is_trouble: bool) -> None:
    error = DBAPIError(statement, None, InvalidParameterValueError("no"))
    assert (trouble_of(error) is not None) is is_trouble
