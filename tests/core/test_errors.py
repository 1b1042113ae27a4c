"""Which errors a command prints as one sentence, and what else they are."""

import pytest

from cl_jax.core.errors import ConfigError, NotFoundError, SaveError


def test_what_the_errors_are_to_callers_that_know_python_alone():
    assert issubclass(ConfigError, ValueError)
    assert issubclass(NotFoundError, FileNotFoundError) and issubclass(NotFoundError, ConfigError)
    assert issubclass(SaveError, OSError) and not issubclass(SaveError, ConfigError)


@pytest.mark.parametrize("kind", [ConfigError, NotFoundError, SaveError])
def test_the_sentence_is_the_message(kind):
    assert str(kind("no such folder: photos.")) == "no such folder: photos."
