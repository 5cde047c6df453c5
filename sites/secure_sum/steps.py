"""The messages around a secure sum: keys, sealed shares, the list of survivors, the opening.

Each is one signed statement, recorded like every other act: a repeated order gets the same bytes. What a
hospital reveals in an attempt it reveals once, for one list of survivors, and of each peer either its
own mask or its pair secret (Bonawitz et al. 2017, figure 4, https://doi.org/10.1145/3133956.3133982).
"""

from collections.abc import Mapping

from privacy.ledger import Charge
from privacy.secure_aggregation.keys import BadShare, commitment_to, mask_key, seal, unseal
from privacy.secure_aggregation.terms import Terms
from privacy.statements import (
    ReleaseManifest,
    Scores,
    Statement,
    SumKeys,
    SumOpening,
    SumShares,
    SumSurvivors,
    Survey,
)
from sites import export
from sites.admission.approvals import check_join
from sites.exchange.phases import Phase
from sites.hospital import Hospital
from sites.orders import Order
from sites.policy.policy import Refused
from sites.progress import Progress
from sites.secure_sum.attempt import Attempt, Peer, begin, keep, stored, terms_of
from sites.secure_sum.figures import check_figures, check_own_figures, weight_of
from sites.secure_sum.own_share import check_own_share
from sites.secure_sum.relay import check_peers, relayed

VECTORS: Mapping[Phase, type[Statement]] = {
    "contribute": ReleaseManifest, "evaluate": Scores, "survey": Survey,
}  # fmt: skip
"""The statement with a masked vector, by the phase in which hospitals make it."""


def announce_keys(hospital: Hospital, order: Order, act: Charge, _: Progress) -> None:
    """Draw the secrets of an attempt and announce the public keys."""
    check_peers(hospital)
    kind = order.sum_kind
    if kind != "survey":  # which comes before anybody joins
        check_join(hospital, order.study, order.run)
    if kind != "update":
        check_figures(hospital, order, act)
    pair, box = begin(hospital, order).secrets.public
    export.free_statement(
        hospital, order.study, act, SumKeys, kind="sum_keys", attempt=order.sum_attempt,
        weight=weight_of(hospital, kind), pair=pair, box=box,
    )  # fmt: skip


def seal_shares(hospital: Hospital, order: Order, act: Charge, _: Progress) -> None:
    """Seal shares of the own secrets for every member of the roster, the hospital itself included."""
    attempt = stored(hospital, order)
    found = relayed(hospital, order, order.sum_phases.keys, SumKeys)
    mine = found.get(hospital.name)
    if mine is None or (mine[0].pair, mine[0].box) != attempt.secrets.public:
        raise Refused("the roster of the secure sum does not have the keys that this hospital announced")
    roster = {
        site: Peer(
            pair=announced.pair,
            box=announced.box,
            weight=announced.weight,
            keys_sha256=sha,
        )
        for site, (announced, sha) in found.items()
    }
    keys = {peer.pair for peer in roster.values()} | {peer.box for peer in roster.values()}
    if len(keys) < 2 * len(roster):
        raise Refused("two members of the secure sum have announced the same key")
    attempt = attempt.model_copy(update={"roster": roster})
    terms = terms_of(order, len(roster))
    if order.sum_kind == "update":
        check_own_share(hospital, order.study, terms.honest)
    else:
        check_own_figures(hospital, order.study, order.sum_kind, terms.honest)
    boxes = _boxes(hospital.name, attempt, terms)
    keep(hospital, order, attempt)
    export.free_statement(
        hospital, order.study, act, SumShares, kind="sum_shares", attempt=order.sum_attempt,
        members={site: peer.keys_sha256 for site, peer in roster.items()},
        boxes=boxes, commitment=commitment_to(attempt.secrets.own),
    )  # fmt: skip


def _boxes(me: str, attempt: Attempt, terms: Terms) -> dict[str, str]:
    """Return a sealed share for each member, or raise `Refused` where its keys agree on nothing."""
    shares, boxes = attempt.secrets.shares(len(attempt.roster), terms.threshold), {}
    for member, share in zip(attempt.members, shares, strict=True):
        peer = attempt.roster[member]
        try:
            _ = mask_key(attempt.secrets.pair, peer.pair, terms.name, (me, member))
            key = attempt.secrets.box_key(peer.box, terms.name)
        except BadShare as error:
            raise Refused(f"the keys that {member} announced for the secure sum: {error}") from error
        boxes[member] = seal(key, share, f"{me} to {member}").hex()
    return boxes


def take_shares(hospital: Hospital, order: Order) -> Attempt:
    """Open the shares that members have sealed for this hospital, before it trains, and store them.

    Raises:
        Refused: a member has seen another roster, fewer than the threshold have sealed shares, or a box
            does not open.
    """
    attempt = stored(hospital, order)
    found = relayed(hospital, order, order.sum_phases.shares, SumShares)
    roster = {site: peer.keys_sha256 for site, peer in attempt.roster.items()}
    terms = terms_of(order, len(roster))
    if hospital.name not in found or not found.keys() <= roster.keys():
        raise Refused("the members of the secure sum are others than those of its roster")
    if len(found) < terms.threshold:
        raise Refused(f"expected {terms.threshold} members of the secure sum, got {len(found)}")
    held = {}
    for site, (shares, _sha256) in found.items():
        if dict(shares.members) != roster:
            raise Refused(f"{site} has seen another roster of the secure sum than this hospital")
        try:
            key = attempt.secrets.box_key(attempt.roster[site].box, terms.name)
            box = bytes.fromhex(shares.boxes[hospital.name])
            held[site] = unseal(key, box, f"{site} to {hospital.name}").hex()
        except (KeyError, BadShare) as error:
            raise Refused(f"the share that {site} has sealed for this hospital: {error}") from error
    taken = {site: sha for site, (_statement, sha) in found.items()}
    if attempt.shares_sha256 not in ({}, taken):
        raise Refused("the members of the secure sum have changed within an attempt")
    attempt = attempt.model_copy(update={"held": held, "shares_sha256": taken})
    keep(hospital, order, attempt)
    return attempt


def sign_survivors(hospital: Hospital, order: Order, act: Charge, _: Progress) -> None:
    """Sign the one list of hospitals whose masked vectors are summed."""
    attempt = stored(hospital, order)
    found = relayed(hospital, order, order.sum_phases.vector, VECTORS[order.sum_phases.vector])
    terms = terms_of(order, len(attempt.roster))
    if hospital.name not in found or not found.keys() <= attempt.held.keys():
        raise Refused("the list of survivors is not one of this attempt's members")
    if len(found) < terms.threshold:
        raise Refused(f"expected {terms.threshold} survivors of the secure sum, got {len(found)}")
    mine = _common_terms(found[hospital.name][0])
    if mine is None or mine[:2] != (order.sum_attempt, attempt.shares_sha256):
        raise Refused("the hospital's own vector is masked for other members or another attempt")
    for site, (release, _sha256) in found.items():
        if _common_terms(release) != mine:
            raise Refused(
                f"the vector of {site} is masked for other members or another attempt, or is of "
                f"another model than this hospital's"
            )
    survivors = {site: sha for site, (_statement, sha) in found.items()}
    if attempt.survivors not in ({}, survivors):
        raise Refused("the hospital has signed another list of survivors in this attempt")
    keep(hospital, order, attempt.model_copy(update={"survivors": survivors}))
    export.free_statement(
        hospital, order.study, act, SumSurvivors,
        kind="sum_survivors", attempt=order.sum_attempt, survivors=survivors,
    )  # fmt: skip


def _common_terms(vector: Statement) -> tuple[object, ...] | None:
    """Return what all vectors of a sum must have in common; None for one that is not masked.

    A coordinator that gives hospitals different models could make all vectors but one known to it
    (Pasquini et al. 2022, https://arxiv.org/abs/2111.07380).
    """
    masked = vector.masked if isinstance(vector, ReleaseManifest | Scores | Survey) else None
    if masked is None:
        return None
    base: tuple[object, ...] = ()
    if isinstance(vector, ReleaseManifest):
        base = (vector.base_sha256, vector.chain_head, vector.content, masked.rate)
    elif isinstance(vector, Scores):
        base = (vector.model_sha256, vector.chain_head, len(vector.hidden), vector.event)
    elif isinstance(vector, Survey):
        base = (len(vector.hidden), vector.event)
    return (masked.attempt, dict(masked.members), *base)


def open_sum(hospital: Hospital, order: Order, act: Charge, _: Progress) -> None:
    """Reveal the shares that unmask the sum, once enough survivors have signed the same list."""
    attempt = stored(hospital, order)
    found = relayed(hospital, order, order.sum_phases.survivors, SumSurvivors)
    terms = terms_of(order, len(attempt.roster))
    if not attempt.survivors:
        raise Refused("the hospital has signed no list of survivors in this attempt")
    agreeing = [
        site for site, (each, _sha256) in found.items() if dict(each.survivors) == attempt.survivors
    ]
    if len(set(agreeing) & attempt.survivors.keys()) < terms.threshold:
        raise Refused(
            f"expected {terms.threshold} survivors who signed this hospital's list, got {len(agreeing)}"
        )
    own, pair = {}, {}
    for site, both in attempt.held.items():
        if site in attempt.survivors:
            own[site] = both[32:]
        else:
            pair[site] = both[:32]
    export.free_statement(
        hospital, order.study, act, SumOpening,
        kind="sum_opening", attempt=order.sum_attempt, own=own, pair=pair,
    )  # fmt: skip
