"""What the coordinator's security log has: who was turned away, and who decided."""

from pathlib import Path

import pytest
from deciders import KEYS, PEOPLE
from puppets import Federation

from flows.decisions.chain import record_verdict
from flows.decisions.verdicts import BadVerdict, signed_verdict, terms_of


def test_a_rejected_release_and_verdicts_are_recorded_with_who_sent_them(
    tmp_path: Path, study_with
) -> None:
    federation = Federation(tmp_path, study_with(promotion={"metric": "dice", "mean": 0}))
    for site in ("east", "north"):
        federation.release(site)
    federation.release("south", base_sha256="f" * 64)
    federation.finish(1)
    run, record = federation.run, federation.run.records()[-1]
    text = signed_verdict(terms_of(run, record), "approved", "ada", "clinician", KEYS["ada"], 30)
    with pytest.raises(BadVerdict):
        record_verdict(run, text.replace("approved", "refused"), PEOPLE)
    record_verdict(run, text, PEOPLE)
    rejected, refused, recorded = run.home.security_log.events()
    assert (rejected["what"], rejected["who"], rejected["round"]) == ("answer_rejected", "south", 1)
    assert "another model" in rejected["why"]
    assert (refused["what"], refused["who"]) == ("verdict_refused", "its sender")
    assert (recorded["what"], recorded["who"], recorded["word"]) == (
        "verdict_recorded", "ada", "approved",
    )  # fmt: skip
