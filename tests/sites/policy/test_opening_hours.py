from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sites.policy.opening_hours import Closed, check_open

CLOCK = st.times().map(lambda t: t.replace(second=0, microsecond=0))


@pytest.mark.parametrize(
    ("hours", "now", "opens"),
    [
        ([], "12:00", None),
        (["20:00-06:00"], "23:59", None),
        (["20:00-06:00"], "05:59", None),
        (["20:00-06:00"], "06:00", "20:00"),
        (["08:00-12:00", "13:00-17:00"], "12:30", "13:00"),
        (["08:00-12:00"], "07:59", "08:00"),
        (["08:00-12:00"], "13:00", "08:00"),
    ],
)
def test_a_hospital_works_in_its_hours_and_says_when_the_next_begin(hours, now, opens) -> None:
    at = datetime.fromisoformat(f"2026-03-01T{now}")
    if opens is None:
        check_open(hours, at)
        return
    with pytest.raises(Closed) as caught:
        check_open(hours, at)
    assert f"{caught.value.opens:%H:%M}" == opens
    assert timedelta(0) < caught.value.opens - at <= timedelta(days=1)


@given(first=CLOCK, last=CLOCK, now=CLOCK)
def test_a_day_is_divided_between_a_span_and_its_reverse(first, last, now) -> None:
    if first == last:
        return
    at, closed = datetime.combine(datetime(2026, 3, 1), now), 0
    for span in (f"{first:%H:%M}-{last:%H:%M}", f"{last:%H:%M}-{first:%H:%M}"):
        try:
            check_open([span], at)
        except Closed as error:
            closed += 1
            check_open([span], error.opens)
    assert closed == 1
