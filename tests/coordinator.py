"""The other side of the exchange, for tests of hospitals: it signs models, orders, reads statements."""

from dataclasses import dataclass
from typing import Any

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from models import checkpoints
from models import params as P
from models.files import sha256_of
from privacy.signing import public_hex, sign, verified
from privacy.statements import ModelManifest, parse_statement
from sites.exchange.exchange import COORDINATOR, Exchange
from sites.exchange.phases import Phase, refusal_of
from sites.exchange.places import Place
from sites.hospital import Hospital
from sites.orders import Order
from sites.protocol.dispatch import carry_out
from sites.study import Study


@dataclass
class Coordinator:
    """The other side of the exchange: signs models, gives orders, reads statements."""

    study: Study
    exchange: Exchange
    key: Ed25519PrivateKey
    run: str = "small-1"
    public_cases: str = ""

    def publish(self, round: int, params: P.Params, rate: float | None = None) -> str:
        data = checkpoints.to_bytes(params)
        manifest = ModelManifest(
            kind="model", study=self.study.name, study_sha256=self.study.sha256, run=self.run,
            round=round, model_sha256=sha256_of(data), chain_head="0" * 64,
            rate=rate,
        )  # fmt: skip
        signed = sign(manifest.model_dump(mode="json"), "coordinator", self.key)
        self.exchange.put_statement(Place.model(self.run, round), signed)
        return self.exchange.put_object(data, COORDINATOR)

    def order(self, hospital: Hospital, phase: Phase, round: int, attempt: int = 1) -> Any:
        order = Order(
            phase=phase, study=self.study, site=hospital.name, run=self.run, round=round,
            attempt=attempt, exchange=self.exchange.url, coordinator=public_hex(self.key),
            public_cases=self.public_cases,
        )  # fmt: skip
        carry_out(hospital, order, lambda *_: None)
        places = (
            Place.statement(self.run, round, act, hospital.name)
            for act in (refusal_of(phase, attempt), phase)
        )
        found = (self.exchange.signed_answer(place, [hospital.public_key]) for place in places)
        data = next(data for data in found if data is not None)
        return parse_statement(verified(data, hospital.name, {hospital.name: hospital.public_key}))


def first_model(study: Study) -> P.Params:
    torch.manual_seed(0)
    return P.of(study.network.build(study.task.dims, study.task.out_channels))
