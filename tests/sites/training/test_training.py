import math
from pathlib import Path

import numpy as np
import pytest
import torch

from models import checkpoints
from models import params as P
from models.adversarial import AttackConfig, MembershipConfig, attacked
from models.objectives import ClassificationConfig, SegmentationConfig, build_task
from models.strategies import fed_prox
from models.unfinished import Unfinished
from privacy.mechanisms import AdaptiveClip, ClipConfig, Mechanism
from privacy.noise import NoiseSource
from privacy.per_patient import per_patient_gradients
from sites.cohort import Patient
from sites.imaging.intake import Scan
from sites.imaging.preprocessing import PreprocessingConfig
from sites.imaging.preprocessing import prepare as preprocess
from sites.imaging.profile import profile_of
from sites.imaging.reading import Reading
from sites.training.config import TrainingConfig
from sites.training.dp_sgd import train_privately
from sites.training.examples import Examples, prepare
from sites.training.sgd import train_plainly

TASK = build_task(SegmentationConfig(kind="segmentation", dims=2, labels={1: "a"}))


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.PReLU(), torch.nn.Conv2d(4, 2, 1)
    )


def examples(patients: int) -> Examples:
    rng = torch.Generator().manual_seed(1)
    images, targets = [], []
    for i in range(patients):
        target = torch.randint(0, 2, (1 + i % 2, 8, 8), generator=rng)
        images.append(
            target[:, None] * 2.0 - 1 + 0.1 * torch.randn(target[:, None].shape, generator=rng)
        )
        targets.append(target)
    return Examples(patients, lambda i, step: (images[i], targets[i]))


def everybody(data: Examples) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return data.batch(range(len(data)), 0)


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


def loss_of(net: torch.nn.Module) -> float:
    images, targets, _ = everybody(examples(6))
    with torch.no_grad():
        return float(TASK.loss(net(images), targets).mean())


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


@pytest.mark.parametrize("lot", ["all", 2, 4])
def test_plain_training_lowers_the_loss(lot: int | str) -> None:
    net = network()
    before = loss_of(net)
    config = TrainingConfig(steps=15, lr=0.1, lot=lot)
    rng = torch.Generator().manual_seed(0)
    train_plainly(net, TASK, examples(6), config, rng, None, lambda *_: None)
    assert loss_of(net) < 0.7 * before


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


RANDOM = PreprocessingConfig(
    shape=(8, 8), fit={"kind": "patches"}, augmentation={"copies": 2, "flip": (0, 1), "noise": 0.1}
)


def patient(name: str, scans: int = 1) -> Patient:
    rng = np.random.default_rng(len(name))
    made = [
        Scan(rng.normal(size=(20, 20)).astype(np.float32), rng.integers(0, 2, (20, 20)), (1.0, 1.0))
        for _ in range(scans)
    ]
    readings = (Reading(profile_of(s), (), lambda s=s: preprocess(s, RANDOM)) for s in made)
    return Patient(name, tuple(readings))


def test_what_is_drawn_for_a_patient_does_not_depend_on_the_others() -> None:
    cpu = torch.device("cpu")
    everyone = [patient("a"), patient("bb", 2), patient("ccc")]
    whole = prepare(everyone, RANDOM, cpu, seed=1)
    alone = prepare(everyone[2:], RANDOM, cpu, seed=1)
    images, _, patient_of = whole.batch([2, 0, 1], step=3)
    assert torch.equal(images[patient_of == 0], alone.batch([0], step=3)[0])
    assert patient_of.tolist() == [0] * 4 + [1] * 4 + [2] * 8  # scans x copies x patches
    assert not torch.equal(images[patient_of == 0], alone.batch([0], step=4)[0])
    other = prepare(everyone[2:], RANDOM, cpu, seed=2)
    assert not torch.equal(images[patient_of == 0], other.batch([0], step=3)[0])


def test_many_copies_of_a_scan_are_one_patients_one_gradient() -> None:
    net, m = network(), mechanism(steps=1)
    config = TrainingConfig(steps=1, lr=0.3, lot="all")
    drawn = prepare([patient("a", 3)], RANDOM, torch.device("cpu"), seed=1)
    start = P.of(net)
    train_privately(net, TASK, drawn, config, m, NoiseSource.for_test(0, ""), None, lambda *_: None)
    assert P.norm(P.subtract(P.of(net), start)) <= 0.3 * 1.0 / m.divisor * (1 + 1e-4)


def test_a_cosine_falls_over_the_rounds_and_a_constant_rate_does_not() -> None:
    for schedule, rates in (("constant", [0.1] * 3), ("cosine", [0.1, 0.075, 0.025])):
        config = TrainingConfig(steps=1, lr=0.1, lot="all", schedule=schedule)
        assert [config.in_round(r, 3).lr for r in (1, 2, 3)] == pytest.approx(rates)


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
    """Their targets change nothing but the attacker, so without him they change nothing at all."""
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


class Killed(Exception):
    pass


def killed_at(last: int):
    """Return a progress that kills the training after a step."""

    def progress(what: str, step: int, of: int) -> None:
        if step == last:
            raise Killed

    return progress


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
