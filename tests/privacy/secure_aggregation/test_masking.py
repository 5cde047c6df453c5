"""Masks cancel exactly in the sum, whoever drops out, and nobody's vector can be read before."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.secure_aggregation.keys import (
    BadShare,
    Secrets,
    commitment_to,
    mask_key,
    opened,
    own_mask_key,
    seal,
    unseal,
)
from privacy.secure_aggregation.masking import Opening, mask, unmask
from privacy.secure_aggregation.ring import Vector, add_mask, on_ring, signed, total
from privacy.secure_aggregation.terms import BadTerms, Terms

NAMES = ("amber", "birch", "cedar", "dune", "elm", "fern")


class Members:
    """All members of an attempt in one place, with their secrets and the shares that each holds."""

    def __init__(self, terms: Terms) -> None:
        self.terms, self.names = terms, NAMES[: terms.members]
        self.numbers = {name: number for number, name in enumerate(self.names, start=1)}
        self.secrets = {name: Secrets.draw() for name in self.names}
        self.public = {name: secret.public[0] for name, secret in self.secrets.items()}
        self.held = {  # by owner of the secret, by holder
            name: dict(zip(self.names, secret.shares(terms.members, terms.threshold), strict=True))
            for name, secret in self.secrets.items()
        }

    def masked(self, name: str, values: Sequence[int]) -> Vector:
        vector = on_ring(np.array(values, np.int64))
        peers = {peer: key for peer, key in self.public.items() if peer != name}
        mask(vector, name, self.secrets[name], peers, self.terms)
        return vector

    def opening(self, survivors: Sequence[str], givers: Sequence[str]) -> Opening:
        def revealed(whose: str, part: slice) -> Mapping[str, bytes]:
            return {giver: self.held[whose][giver][part] for giver in givers}

        lost = set(self.names) - set(survivors)
        return Opening(
            numbers=self.numbers,
            public=self.public,
            commitments={name: commitment_to(secret.own) for name, secret in self.secrets.items()},
            own={name: revealed(name, slice(16, 32)) for name in survivors},
            pair={name: revealed(name, slice(0, 16)) for name in lost},
        )


@st.composite
def attempts(draw: st.DrawFn) -> tuple[Terms, list[str], list[str]]:
    count = draw(st.integers(2, 6))
    allowed = [
        (t, c)
        for t, c in itertools.product(range(count), range(count))
        if 2 * (count - t) > count + c and count - t - c >= 1
    ]
    dropouts, colluding = draw(st.sampled_from(allowed))
    terms = Terms("run 3 1", count, dropouts, colluding)
    lost = draw(st.integers(0, dropouts))
    survivors = draw(st.permutations(NAMES[:count]))[: count - lost]
    givers = draw(st.permutations(survivors))[: draw(st.integers(terms.threshold, len(survivors)))]
    return terms, survivors, givers


@settings(max_examples=40, deadline=None)
@given(
    attempt=attempts(),
    values=st.lists(
        st.lists(st.integers(-(2**31), 2**31 - 1), min_size=5, max_size=5), min_size=6, max_size=6
    ),
)
def test_the_unmasked_sum_is_the_integer_sum_for_any_dropouts_and_any_order(
    attempt: tuple[Terms, list[str], list[str]], values: list[list[int]]
) -> None:
    terms, survivors, givers = attempt
    members, plain = Members(terms), dict(zip(NAMES, values, strict=True))
    vectors = [members.masked(name, plain[name]) for name in survivors]
    result = unmask(vectors, survivors, members.opening(survivors, givers), terms)
    due = np.array([plain[name] for name in survivors], np.int64).sum(0)
    assert np.array_equal(result, on_ring(due))


def test_a_masked_vector_alone_and_the_sum_before_the_opening_look_uniform() -> None:
    members = Members(Terms("run 1 1", 3, 0, 0))
    zero = [0] * 20_000
    vectors = [members.masked(name, zero) for name in members.names]
    for vector in (*vectors, total(vectors)):
        counts = np.bincount(vector >> np.uint32(28), minlength=16)
        assert ((counts - 1250) ** 2 / 1250).sum() < 60  # chi-square with 15 degrees, far in its tail


def test_a_hospital_that_is_called_a_dropout_stays_masked_by_its_own_mask() -> None:
    """A coordinator that has somebody's vector, and all shares of its pair secret, does not read it."""
    terms = Terms("run 1 1", 4, 1, 0)
    members = Members(terms)
    victim, rest = "amber", ["birch", "cedar", "dune"]
    vector = members.masked(victim, [1, 2, 3])
    opening = members.opening(rest, rest)
    pair = opened({members.numbers[giver]: opening.pair[victim][giver] for giver in rest})
    bare = vector.copy()
    for peer in rest:
        key = mask_key(pair, members.public[peer], terms.name, (victim, peer))
        add_mask(bare, key, -1 if victim < peer else 1)
    assert signed(bare).tolist() != [1, 2, 3]
    add_mask(bare, _own_key(members, victim), -1)  # which nobody has revealed
    assert signed(bare).tolist() == [1, 2, 3]


def _own_key(members: Members, name: str) -> bytes:
    return own_mask_key(members.secrets[name].own, members.terms.name)


def test_a_member_that_copies_anothers_key_has_other_masks_and_no_second_form_of_a_key_is_taken() -> (
    None
):
    """With equal masks of two pairs a third member's would cancel, and its vector would lie open."""
    amber, birch = Secrets.draw(), Secrets.draw()
    public = birch.public[0]
    masks = {mask_key(amber.pair, public, "run 1 1", ("amber", name)) for name in ("birch", "cedar")}
    assert len(masks) == 2
    assert mask_key(birch.pair, amber.public[0], "run 1 1", ("birch", "amber")) in masks
    other_form = (int.from_bytes(bytes.fromhex(public), "little") | 1 << 255).to_bytes(32, "little")
    with pytest.raises(BadShare, match="canonical"):
        mask_key(amber.pair, other_form.hex(), "run 1 1", ("amber", "cedar"))


def test_fewer_shares_than_the_threshold_open_nothing() -> None:
    members = Members(Terms("run 1 1", 4, 1, 0))
    vectors = [members.masked(name, [5]) for name in members.names]
    with pytest.raises(BadShare, match="expected 3 shares of amber's secret"):
        unmask(vectors, members.names, members.opening(members.names, members.names[:2]), members.terms)
    shares = dict(enumerate(members.secrets["amber"].shares(4, 3), start=1))
    two = opened({number: shares[number][:16] for number in (1, 2)})
    assert two != members.secrets["amber"].pair


def test_a_wrong_share_is_done_without_where_others_suffice() -> None:
    members = Members(Terms("run 1 1", 4, 1, 0))
    vectors = [members.masked(name, [5]) for name in members.names]
    right = members.opening(members.names, members.names)
    own = {**right.own, "birch": {**right.own["birch"], "amber": bytes(16)}}
    found = unmask(vectors, members.names, replace(right, own=own), members.terms)
    assert signed(found).tolist() == [20]


def test_a_wrong_share_is_found_and_named() -> None:
    members = Members(Terms("run 1 1", 4, 1, 0))
    survivors = ["amber", "birch", "cedar"]
    vectors = [members.masked(name, [5]) for name in survivors]
    right = members.opening(survivors, survivors)
    for kind, whose in (("own", "birch"), ("pair", "dune")):
        given = dict(getattr(right, kind))
        given[whose] = {**given[whose], "cedar": bytes(16)}
        with pytest.raises(BadShare, match=f"shares of {whose}'s"):
            unmask(vectors, survivors, replace(right, **{kind: given}), members.terms)


def test_the_same_secrets_mask_differently_in_another_attempt() -> None:
    first = Members(Terms("run 1 1", 2, 0, 0))
    vector = first.masked("amber", [0] * 8)
    first.terms = Terms("run 1 2", 2, 0, 0)
    assert not np.array_equal(vector, first.masked("amber", [0] * 8))


def test_a_box_is_read_by_its_receiver_under_its_label_alone() -> None:
    amber, birch, cedar = (Secrets.draw() for _ in range(3))
    key = amber.box_key(birch.public[1], "run 1 1")
    assert birch.box_key(amber.public[1], "run 1 1") == key
    box = seal(key, bytes(32), "amber to birch")
    assert unseal(key, box, "amber to birch") == bytes(32)
    others = [
        (cedar.box_key(amber.public[1], "run 1 1"), box, "amber to birch"),
        (birch.box_key(amber.public[1], "run 1 2"), box, "amber to birch"),
        (key, box, "birch to amber"),
        (key, bytes([box[0] ^ 1]) + box[1:], "amber to birch"),
    ]
    for wrong in others:
        with pytest.raises(BadShare, match="can't be opened"):
            unseal(*wrong)


def test_a_public_key_that_makes_every_agreement_zero_is_refused() -> None:
    with pytest.raises(BadShare, match="not valid"):
        Secrets.draw().box_key("00" * 32, "run 1 1")


@pytest.mark.parametrize(
    ("members", "dropouts", "colluding"), [(1, 0, 0), (4, 2, 0), (4, 1, 2), (3, 0, 3)]
)
def test_terms_that_protect_nobody_are_refused(members: int, dropouts: int, colluding: int) -> None:
    with pytest.raises(BadTerms, match="Expected 2"):
        Terms("run 1 1", members, dropouts, colluding)


@given(members=st.integers(2, 60), dropouts=st.integers(0, 60), colluding=st.integers(0, 60))
def test_two_lists_of_survivors_never_both_find_enough_signatures(
    members: int, dropouts: int, colluding: int
) -> None:
    try:
        terms = Terms("run 1 1", members, dropouts, colluding)
    except BadTerms:
        return
    honest = members - colluding  # each signs one list, the colluding sign both
    assert 2 * (terms.threshold - colluding) > honest
    assert terms.honest >= 1
