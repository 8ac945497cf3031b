"""What a process of a training on several devices says where another one has ended."""

import re

_LOST = re.compile(
    r"gloo/transport|Connection (closed|reset) by peer|remote process exited|NCCL communicator was "
    r"aborted|ncclRemoteError|ncclInternalError|Watchdog caught collective operation timeout"
    r"|TCPStore|recvValue failed"
)


def lost(error: BaseException) -> str | None:
    """Say that another process has ended, if the error is about that."""
    if not isinstance(error, RuntimeError) or not _LOST.search(str(error)):
        return None
    return (
        "another process of this training has ended, and this one cannot go on alone. The cause is "
        "what that one printed last, or that it was killed (torchrun --log_dir keeps what each "
        "prints). The same command resumes from the last checkpoint."
    )
