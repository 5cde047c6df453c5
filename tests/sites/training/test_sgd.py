from pathlib import Path

import pytest
import torch
from trainings import TASK, Killed, everybody, examples, killed_at, loss_of, network

from models import params as P
from models.objectives import build_task
from models.settings.opponents import MembershipConfig
from models.settings.tasks import ClassificationConfig
from models.unfinished import Unfinished
from sites.training.config import TrainingConfig
from sites.training.examples import Examples
from sites.training.sgd import train_plainly


@pytest.mark.parametrize("lot", ["all", 2, 4])
def test_plain_training_lowers_the_loss(lot: int | str) -> None:
    net = network()
    before = loss_of(net)
    config = TrainingConfig(steps=15, lr=0.1, lot=lot)
    rng = torch.Generator().manual_seed(0)
    train_plainly(net, TASK, examples(6), config, rng, None, lambda *_: None)
    assert loss_of(net) < 0.7 * before


CLASSES = build_task(ClassificationConfig(kind="classification", dims=2, labels={0: "well", 1: "ill"}))


def strangers_and_members(count: int, seed: int) -> Examples:
    """Patients with labels drawn at random: all that can be learned is who they are."""
    rng = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 1, 1, 6, 6, generator=rng)
    targets = torch.randint(0, 2, (count, 1), generator=rng)
    return Examples(count, lambda i, step: (images[i], targets[i]))


def membership_auc(config: TrainingConfig) -> float:
    """Return how well a threshold on the loss tells the first 60 of 80 patients from new ones."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(36, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2)
    )
    known, new = strangers_and_members(80, 0), strangers_and_members(200, 1)
    rng = torch.Generator().manual_seed(0)
    train_plainly(net, CLASSES, known, config, rng, None, lambda *_: None)
    with torch.no_grad():
        (a, y, _), (b, z, _) = known.batch(range(60), 0), everybody(new)
        inside, outside = CLASSES.loss(net(a), y), CLASSES.loss(net(b), z)
    return float((inside[:, None] < outside[None]).float().mean())


def test_an_attacker_in_training_hides_who_took_part() -> None:
    plain = TrainingConfig(steps=400, lr=0.2, momentum=0.9, lot="all", microbatch=80)
    hidden = plain.model_copy(update={"membership": MembershipConfig(strength=4.0)})
    assert membership_auc(plain) > 0.78  # of the new ones half are right by chance
    assert membership_auc(hidden) < 0.65


def test_who_is_the_attackers_reference_does_not_train() -> None:
    """Their targets change nothing but the attacker, so without it they change nothing at all."""
    torch.manual_seed(0)
    start = P.of(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 2)))
    known = strangers_and_members(8, 0)
    config = TrainingConfig(
        steps=3, lr=0.1, lot="all", membership=MembershipConfig(strength=1e-12, reference=0.25)
    )

    def trained(data: Examples) -> P.Params:
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 2))
        P.load_into(net, start)
        rng = torch.Generator().manual_seed(0)
        train_plainly(net, CLASSES, data, config, rng, None, lambda *_: None)
        return P.of(net)

    def with_other_labels(from_patient: int) -> Examples:
        def draw(i: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
            images, targets = known.draw(i, step)
            return images, 1 - targets if i >= from_patient else targets

        return Examples(8, draw)

    plain, reference, members = trained(known), *(trained(with_other_labels(n)) for n in (6, 5))
    assert all(torch.allclose(plain[n], reference[n], atol=1e-7) for n in plain)
    assert not all(torch.allclose(plain[n], members[n], atol=1e-4) for n in plain)


def test_a_plain_training_that_was_killed_goes_on_bit_for_bit_where_it_stood(tmp_path: Path) -> None:
    config = TrainingConfig(steps=7, lr=0.1, lot=4, microbatch=2)
    unfinished = Unfinished(tmp_path / "training", 0)

    def trained(net, unfinished, progress) -> None:
        rng = torch.Generator().manual_seed(3)
        train_plainly(net, TASK, examples(6), config, rng, None, progress, unfinished)

    whole, resumed = network(), network()
    trained(whole, None, lambda *_: None)
    with pytest.raises(Killed):
        trained(network(), unfinished, killed_at(4))
    trained(resumed, unfinished, lambda *_: None)
    for name, p in P.of(whole).items():
        assert torch.equal(P.of(resumed)[name], p)
