"""Places are written and read back by one type."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sites.exchange.places import Place

RUNS = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,20}", fullmatch=True)
SITES = st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True)
ACTS = st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True)
ROUNDS = st.integers(0, 10**6)
KEYS = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
PLACES = st.one_of(
    st.builds(Place.statement, RUNS, ROUNDS, ACTS, SITES),
    st.builds(Place.revocation, SITES, KEYS),
    st.builds(Place.order, RUNS, ROUNDS, ACTS, st.integers(1, 999), SITES),
    st.builds(Place.model, RUNS, ROUNDS),
    st.builds(Place.released, RUNS, ROUNDS, SITES),
    st.builds(Place.head, RUNS, ROUNDS),
    st.builds(Place.decision, RUNS, st.integers(1, 10**5)),
)


@given(place=PLACES)
def test_a_place_is_read_back_as_it_was_written(place: Place) -> None:
    assert Place.parse(str(place)) == place


@given(one=PLACES, other=PLACES)
def test_two_places_never_share_a_name(one: Place, other: Place) -> None:
    assert (str(one) == str(other)) == (one == other)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (Place.statement("r-1", 3, "contribute", "north"), "statements/north/r-1.003.contribute"),
        (Place.revocation("north", "ab" * 32), f"statements/north/revoked.{'ab' * 16}"),
        (Place.order("r-1", 0, "join", 2, "north"), "orders/north/r-1.000.join.2"),
        (Place.model("r-1", 12), "models/r-1.012"),
        (Place.released("r-1", 1, "north"), "models/r-1.001.of-north"),
        (Place.head("r-1", 1), "models/r-1.001.head"),
        (Place.decision("r-1", 7), "models/r-1.decision-0007"),
    ],
)
def test_a_place_has_the_name_that_is_documented(place: Place, name: str) -> None:
    assert str(place) == name


@pytest.mark.parametrize(
    "name",
    [
        "", "statements/north", "statements/north/r-1.3.contribute", "statements/north/../r.003.x",
        "statements/a/b/r-1.003.contribute", "orders/north/r-1.000.join", "models/r-1.0003",
        "models/r-1.003.of-", "models/R-1.003", "statements/north/revoked.ab",
        "models/r-1.003.head\n",
    ],
)  # fmt: skip
def test_any_other_name_is_no_place(name: str) -> None:
    assert Place.parse(name) is None
