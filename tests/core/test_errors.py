"""The last words of a command say whether starting it again may help: launchers go by the exit code."""

import errno
import os

import pytest

from jaxllm.core.errors import EXIT_SAVED_START_AGAIN, EXIT_USAGE, ConfigError, last_words


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_file_system_that_fails_is_worth_another_start(number: int) -> None:
    said = last_words(OSError(number, os.strerror(number), "steps/000000.jsonl"))
    assert said is not None and said[1] == EXIT_SAVED_START_AGAIN and os.strerror(number) in said[0]


def test_what_a_person_must_mend_is_not() -> None:
    assert last_words(FileNotFoundError(errno.ENOENT, "No such file", "x.json")) == ("x.json: No such file", EXIT_USAGE)
    assert last_words(ConfigError("seed=-1")) == ("seed=-1", EXIT_USAGE)
    assert last_words(ValueError("ours")) is None
