"""Reading from disks and mounted buckets, which fail now and then.

What may pass is tried again for some seconds and then ends the run. As a bad record it would be
replaced by another one, and a run that goes on later would not repeat that.
"""

import errno
import time

from absl import logging

from samclip_jax.errors import UserError

WAITS = (0.1, 0.4, 1.6, 6.4)  # s, before the second to the fifth try
ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
FORBIDDEN = (errno.EACCES, errno.EPERM)


def retried(read, path):
    """read(), which reads what lies at `path`.

    OSError where no file lies there, or where its content is at fault: such errors of gzip and bz2
    have no errno. UserError, which names `path`, where it may not be read, and where any other
    error stays.
    """
    for wait in (*WAITS, None):
        try:
            return read()
        except OSError as error:
            if error.errno is None or error.errno in ABSENT:
                raise
            if error.errno in FORBIDDEN:
                raise UserError(
                    f"{path} was not read: {error.strerror}; give this user the right to read it."
                ) from error
            if wait is None:
                raise UserError(
                    f"{path} was not read, after {len(WAITS) + 1} tries: {error.strerror}; run the "
                    "same again when its storage answers."
                ) from error
            logging.warning("%s was not read, which is tried again: %s", path, error.strerror)
        time.sleep(wait)
