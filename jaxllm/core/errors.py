"""What can go wrong for a user, as types. Each message is one line: where, what, what to do."""

import errno


class JaxllmError(Exception):
    """A mistake that a person can mend. The command line prints the message alone and leaves with `exit_code`."""

    exit_code = 2


class ConfigError(JaxllmError, ValueError):
    """A configuration value is missing, misspelt, of the wrong type or contradicts another one."""


class DataError(JaxllmError, ValueError):
    """An input document, a tokenizer or a token store cannot be used."""


class LayoutError(JaxllmError, ValueError):
    """A model does not divide over a mesh, or an axis name is unknown."""


class RunError(JaxllmError):
    """A run folder cannot be used as asked: held by another process, changed identity, wrong step."""


class LedgerError(JaxllmError):
    """A journal or a step record is broken: the chain does not hold, a line cannot be read."""


class CheckpointError(JaxllmError):
    """No usable checkpoint, or one that does not match what the run declared."""


class CheckFailed(JaxllmError):
    """A comparison that was asked for did not hold."""

    exit_code = 1


# Exit codes of every command (DESIGN.md section 4).
EXIT_DONE = 0
EXIT_CHECK_FAILED = 1
EXIT_USAGE = 2
EXIT_GUARD_STOPPED = 3
EXIT_SAVED_START_AGAIN = 75


def last_words(err: BaseException) -> tuple[str, int] | None:
    """(line for people, exit code) of an error that ends a command; None for one that needs its traceback."""
    match err:
        case JaxllmError():
            return str(err), err.exit_code
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return f"the disk is full ({err}); free space and start the same command again", EXIT_SAVED_START_AGAIN
        case OSError(errno=errno.EIO | errno.ESTALE | errno.ETIMEDOUT):
            return f"the file system does not answer ({err}); start the same command again", EXIT_SAVED_START_AGAIN
        case OSError() if err.filename is not None:
            return f"{err.filename}: {err.strerror}", EXIT_USAGE
        case _:
            return None
