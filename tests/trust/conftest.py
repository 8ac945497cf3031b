"""Fixtures that the tests of trust share."""

import pytest
from emulated_device import emulation
from every_method import METHODS, config, train_starts


@pytest.fixture(scope="session")
def starts(tmp_path_factory):
    """The folder of the runs that some methods begin with, not to be changed."""
    home = tmp_path_factory.mktemp("starts")
    train_starts(home)
    return home


@pytest.fixture
def of_method(starts, tmp_path):
    """A writer of a method's config into the test's own folder."""

    def write(method, **options):
        path = tmp_path / f"{method}.yaml"
        path.write_text(config(method, starts, **options))
        return path

    return write


@pytest.fixture(params=METHODS)
def method(request):
    """Every method in turn."""
    return request.param


@pytest.fixture
def device(starts):
    """An emulated device, which takes the place of the CPU."""
    with emulation() as emulated:
        yield emulated
