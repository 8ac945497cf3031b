"""Lightning's notices, silenced while ltbench runs: what matters of them is in the record."""

import contextlib
import logging
import warnings
from collections.abc import Iterator

_LOGGERS = ("lightning.pytorch", "lightning.fabric")
_DEATHS = "lightning.fabric.strategies.launchers.subprocess_script"  # of processes that it started
_NOTICES = (
    "Be aware that when using `ckpt_path`",  # an evaluation needs only the weights
    "You're using the WeightAveraging callback, but loading",  # those are the averaged ones
    "Total length of `list` across ranks is zero",  # training without a validation split
    "The number of training batches",  # fewer than log_every_n_steps
    ".*does not have many workers",  # images in memory need none
    "It is recommended to use `self.log.* sync_dist=True",  # metrics come from summed counts
    ".* exists and is not empty",  # a resumed run
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the notices, and restore loggers and filters afterwards."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        # Lightning uses a name that torch has deprecated; a user can do nothing about it.
        warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated", FutureWarning)
        for notice in _NOTICES:
            warnings.filterwarnings("ignore", notice, UserWarning)
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        logging.getLogger(_DEATHS).setLevel(logging.INFO)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
