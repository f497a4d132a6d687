"""The limit of open files of a server or a gateway, each of whose connections takes one."""

from __future__ import annotations

import contextlib
import logging

log = logging.getLogger(__name__)
OWN_FILES = 64
"""What a process has open beside the connections, and some to spare."""


def raise_open_files(connections: int) -> None:
    """Raises the limit to the highest that is allowed; often it is 1,024.

    Logs a warning if that is too few for as many connections.
    """
    import resource

    limit, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # some systems name a highest one that they refuse
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest, highest))
        limit = highest
    needed = connections + OWN_FILES
    if limit != resource.RLIM_INFINITY and limit < needed:
        log.warning(
            "the limit of open files is low, and each connection takes one; raise the hard limit (ulimit -Hn)",
            extra={"limit": limit, "needed": needed},
        )
