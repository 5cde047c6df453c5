import math
from pathlib import Path

import pytest
import torch
from trainings import RANDOM, TASK, Killed, everybody, examples, killed_at, loss_of, network, patient

from models import checkpoints
from models import params as P
from models.adversarial import attacked
from models.settings.opponents import AttackConfig
from models.strategies import fed_prox
from models.unfinished import Unfinished
from privacy.mechanisms import AdaptiveClip, ClipConfig, Mechanism
from privacy.noise.source import NoiseSource
from privacy.per_patient import per_patient_gradients
from sites.training.config import TrainingConfig
from sites.training.dp_sgd import train_privately
from sites.training.examples import Examples, prepare


def mechanism(noise: float = 1e-6, rate: float = 1.0, steps: int = 5) -> Mechanism:
    return Mechanism(ClipConfig(kind="normalised", norm=1.0), noise, rate, steps, divisor=6 * rate)


def train(
    net: torch.nn.Module, m: Mechanism, microbatch: int = 4, local_loss=None, seed: int = 0
) -> list[int]:
    seen: list[int] = []
    config = TrainingConfig(steps=m.steps, lr=0.3, lot="all", microbatch=microbatch)
    train_privately(
        net, TASK, examples(6), config, m, NoiseSource.for_test(seed, ""), local_loss,
        lambda what, step, of: seen.append(step),
    )  # fmt: skip
    return seen


def test_private_training_lowers_the_loss_where_noise_is_small() -> None:
    net = network()
    before = loss_of(net)
    assert train(net, mechanism(steps=15)) == list(range(1, 16))
    assert loss_of(net) < 0.7 * before


def test_the_size_of_microbatches_changes_memory_and_nothing_else() -> None:
    results = []
    for microbatch in (1, 4, 100):
        net = network()
        train(net, mechanism(), microbatch)
        results.append(P.of(net))
    for other in results[1:]:
        assert all(torch.allclose(results[0][n], other[n], atol=1e-5) for n in other)


def test_the_first_step_is_the_clipped_mean_written_out() -> None:
    net, plain = network(), network()
    train(net, mechanism(steps=1))
    data, moved = examples(6), {n: torch.zeros_like(p) for n, p in P.of(plain).items()}
    for images, targets in (data.draw(i, 0) for i in range(len(data))):
        loss = TASK.loss(plain(images), targets).mean()
        gradients = dict(zip(moved, torch.autograd.grad(loss, list(plain.parameters())), strict=True))
        factor = 1 / (P.norm(gradients) + 0.01)
        moved = {n: moved[n] + factor * g for n, g in gradients.items()}
    expected = {n: p - 0.3 * moved[n] / 6 for n, p in P.of(plain).items()}
    assert all(torch.allclose(P.of(net)[n], expected[n], atol=1e-5) for n in expected)


def test_the_same_test_noise_gives_the_same_bits_and_other_noise_does_not() -> None:
    nets = [network() for _ in range(3)]
    for net, seed in zip(nets, (1, 1, 2), strict=True):
        train(net, mechanism(noise=1.0, rate=0.5), seed=seed)
    a, b, c = (P.of(net) for net in nets)
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert not all(torch.equal(a[n], c[n]) for n in a)


def test_a_sampling_rate_so_small_that_lots_are_empty_trains_on() -> None:
    net = network()
    assert train(net, mechanism(rate=1e-6)) == [1, 2, 3, 4, 5]
    assert all(p.isfinite().all() for p in net.parameters())


def test_a_strategys_local_loss_pulls_towards_the_global_model() -> None:
    free, held = network(), network()
    start = P.of(free)
    train(free, mechanism())
    train(held, mechanism(), local_loss=fed_prox(mu=1.0).local_loss)
    assert P.norm(P.subtract(P.of(held), start)) < 0.8 * P.norm(P.subtract(P.of(free), start))


@pytest.mark.parametrize("microbatch", [1, 4, 100])
def test_an_adaptive_clip_norm_counts_each_patient_once_however_the_lot_is_divided(
    microbatch: int,
) -> None:
    clip = AdaptiveClip(kind="adaptive", norm=1e-3)
    config = TrainingConfig(steps=1, lr=0.1, lot="all", microbatch=microbatch)
    left = train_privately(
        network(), TASK, examples(6), config, Mechanism(clip, 1e-9, 1.0, 1, divisor=6),
        NoiseSource.for_test(0, ""), None, lambda *_: None,
    )  # fmt: skip
    assert left.clip.norm == pytest.approx(1e-3 * math.exp(0.2 * 0.5))  # nobody was within


def test_an_adaptive_clip_norm_finds_the_size_of_the_patients_gradients() -> None:
    net, clip = network(), AdaptiveClip(kind="adaptive", norm=20.0, rate=0.5)
    config = TrainingConfig(steps=30, lr=1e-3, lot="all")
    left = train_privately(
        net, TASK, examples(6), config, Mechanism(clip, 1e-6, 1.0, 30, divisor=6),
        NoiseSource.for_test(0, ""), None, lambda *_: None,
    )  # fmt: skip
    images, targets, patient_of = everybody(examples(6))
    gradients = per_patient_gradients(net, TASK.loss, images, targets, patient_of)
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients.values()]).norm(dim=0)
    assert norms.min() / 1.3 < left.clip.norm < norms.max() * 1.3


def test_many_copies_of_a_scan_are_one_patients_one_gradient() -> None:
    net, m = network(), mechanism(steps=1)
    config = TrainingConfig(steps=1, lr=0.3, lot="all")
    drawn = prepare([patient("a", 3)], RANDOM, torch.device("cpu"), seed=1)
    start = P.of(net)
    train_privately(net, TASK, drawn, config, m, NoiseSource.for_test(0, ""), None, lambda *_: None)
    assert P.norm(P.subtract(P.of(net), start)) <= 0.3 * 1.0 / m.divisor * (1 + 1e-4)


def test_training_on_attacked_images_withstands_the_attack_better_and_stays_private() -> None:
    attack = AttackConfig(kind="pgd", radius=0.8, steps=3)
    images, targets, _ = everybody(examples(6))
    losses = {}
    for name, adversarial in (("plain", None), ("adversarial", attack)):
        net = network()
        config = TrainingConfig(steps=40, lr=0.3, lot="all", adversarial=adversarial)
        train_privately(
            net, TASK, examples(6), config, mechanism(steps=40), NoiseSource.for_test(0, ""), None,
            lambda *_: None,
        )  # fmt: skip
        changed = attacked(net, TASK.loss, images, targets, attack)
        with torch.no_grad():
            losses[name] = float(TASK.loss(net(changed), targets).mean())
    assert losses["adversarial"] < 0.9 * losses["plain"]


def test_attacked_images_are_within_one_patients_clip_norm() -> None:
    net, m = network(), mechanism(steps=1)
    attack = AttackConfig(kind="fgsm", radius=5.0)
    config = TrainingConfig(steps=1, lr=0.3, lot="all", adversarial=attack)
    one = Examples(1, lambda i, step: examples(6).draw(1, step))
    start = P.of(net)
    train_privately(net, TASK, one, config, m, NoiseSource.for_test(0, ""), None, lambda *_: None)
    assert P.norm(P.subtract(P.of(net), start)) <= 0.3 * 1.0 / m.divisor * (1 + 1e-4)


@pytest.mark.parametrize("clip", ["normalised", "adaptive"])
def test_a_private_training_that_was_killed_goes_on_bit_for_bit_where_it_stood(
    tmp_path: Path, clip: str
) -> None:
    kinds = {
        "normalised": ClipConfig(kind="normalised", norm=1.0),
        "adaptive": AdaptiveClip(kind="adaptive", norm=1.0, quantile=0.5),
    }
    m = Mechanism(kinds[clip], 0.5, 0.7, 6, divisor=4.2)
    config = TrainingConfig(steps=6, lr=0.3, lot=4, microbatch=2)

    def trained(net, unfinished, progress):
        noise = NoiseSource.for_test(0, "")
        return train_privately(net, TASK, examples(6), config, m, noise, pull, progress, unfinished)

    def pull(own, start):
        return sum((own[name] - start[name]).square().sum() for name in own)

    whole, resumed = network(), network()
    left = trained(whole, None, lambda *_: None)
    for last in (2, 3, 5):
        torch.manual_seed(last)
        resumed = network()
        with pytest.raises(Killed):
            trained(resumed, Unfinished(tmp_path / "training", 0), killed_at(last))
    resumed, seen = network(), []
    found = trained(
        resumed, Unfinished(tmp_path / "training", 0), lambda what, step, of: seen.append(step)
    )
    assert seen == [6]
    assert found.clip == left.clip
    for name, p in P.of(whole).items():
        assert torch.equal(P.of(resumed)[name], p)


def test_a_training_that_goes_on_counts_the_steps_before_the_kill(tmp_path: Path) -> None:
    """Opacus' accountant is held against the charge at the end, so forgetting them is an error."""
    config = TrainingConfig(steps=5, lr=0.3, lot="all")
    unfinished = Unfinished(tmp_path / "training", 0)

    def trained(progress) -> None:
        noise = NoiseSource.from_system()
        train_privately(
            network(), TASK, examples(6), config, mechanism(), noise, None, progress, unfinished
        )

    with pytest.raises(Killed):
        trained(killed_at(3))
    kept = dict(unfinished.read() or {})
    kept["accountant"] = kept["accountant"][:, :2].new_tensor([[1e-6, 1.0, 2.0]])
    checkpoints.write(unfinished.path, kept)
    with pytest.raises(RuntimeError, match="Opacus counted"):
        trained(lambda *_: None)


@pytest.mark.parametrize("microbatch", [1, 4])
def test_a_patient_whose_scans_break_while_training_counts_as_zero(microbatch: int) -> None:
    """As if the patient's gradient were zero: the same parameters as without the patient."""
    data, results = examples(6), []
    breaks = Examples(6, lambda i, step: None if i == 3 else data.draw(i, step))
    without = Examples(5, lambda i, step: data.draw(i if i < 3 else i + 1, step))
    for those in (breaks, without):
        net, m = network(), mechanism(steps=3)
        config = TrainingConfig(steps=3, lr=0.3, lot="all", microbatch=microbatch)
        noise = NoiseSource.for_test(0, "")
        train_privately(net, TASK, those, config, m, noise, None, lambda *_: None)
        results.append(P.of(net))
    assert all(torch.allclose(results[0][n], results[1][n], atol=1e-6) for n in results[0])


def test_a_hospital_nobody_of_whom_can_be_read_releases_noise_alone() -> None:
    nobody = Examples(4, lambda i, step: None)
    net, config = network(), TrainingConfig(steps=2, lr=0.3, lot="all")
    before, noise = P.of(net), NoiseSource.for_test(0, "")
    train_privately(net, TASK, nobody, config, mechanism(1.0, steps=2), noise, None, lambda *_: None)
    assert P.all_finite(P.of(net))
    assert all(not torch.equal(before[name], value) for name, value in P.of(net).items())
