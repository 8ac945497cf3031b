"""Seeds depend on the whole key and on nothing else."""

import lightning as L
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ltbench import seeding

keys = st.tuples(st.integers(0, 2**31), st.sampled_from(["step", "augment"]), st.integers(0, 2**40))


@given(keys, keys)
def test_other_keys_give_other_seeds(one: tuple[int, str, int], two: tuple[int, str, int]) -> None:
    assert (seeding.derive(*one) == seeding.derive(*two)) == (one == two)
    assert 0 <= seeding.derive(*one) < 2**63


def test_generator_is_fresh_and_private() -> None:
    state = torch.get_rng_state()
    draws = [torch.rand(3, generator=seeding.generator("cpu", 0, "noise", 5)) for _ in range(2)]
    assert torch.equal(*draws)
    assert torch.equal(torch.get_rng_state(), state)


def test_run_seed_is_lightnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")  # restored afterwards, whatever Lightning sets
    assert seeding.run_seed() == 3
    L.seed_everything(17, verbose=False)
    assert seeding.run_seed() == 17


def test_a_device_is_seeded_as_by_torch():
    draws = []
    for seed in (torch.manual_seed, lambda n: seeding.seed_device(torch.device("cpu"), n)):
        torch.rand(2)
        seed(5)
        draws.append(torch.rand(3))
    assert torch.equal(*draws)
