import random

import numpy as np
import pytest
import torch


@pytest.fixture
def global_generators_are_left_alone():
    def states():
        legacy = [np.asarray(part).tolist() for part in np.random.get_state()]
        return random.getstate(), legacy, torch.get_rng_state().tolist()

    before = states()
    yield
    assert states() == before
