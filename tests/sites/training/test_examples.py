import torch
from trainings import RANDOM, patient

from sites.training.examples import prepare


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
