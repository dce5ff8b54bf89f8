"""The place of a process, from its environment."""

import pytest

from jaxllm.core.errors import ConfigError
from jaxllm.parallel.processes import Place, anywhere, first, gather, place_of, share

WHOLE = {"JAXLLM_COORDINATOR": "host:1234", "JAXLLM_PROCESSES": "4", "JAXLLM_PROCESS": "3"}


def test_a_place_is_all_of_it_or_none() -> None:
    assert place_of({}) is None
    assert place_of(WHOLE) == Place(coordinator="host:1234", processes=4, process=3)
    assert place_of({"JAXLLM_DISTRIBUTED": "auto"}) == Place()


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"JAXLLM_PROCESS": "0"}, "JAXLLM_PROCESS without JAXLLM_COORDINATOR, JAXLLM_PROCESSES"),
        (WHOLE | {"JAXLLM_PROCESS": "4"}, "JAXLLM_PROCESS=4 of JAXLLM_PROCESSES=4"),
        (WHOLE | {"JAXLLM_COORDINATOR": "host"}, "write host:port"),
        (WHOLE | {"JAXLLM_DISTRIBUTED": "auto"}, "none of JAXLLM_COORDINATOR"),
        ({"JAXLLM_DISTRIBUTED": "slurm"}, "only 'auto' is known"),
    ],
)
def test_half_a_place_is_refused(environment: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        place_of(environment)


def test_one_process_agrees_with_itself() -> None:
    assert (gather(1), share(2), first(lambda: 3)) == ([1], 2, 3)
    assert (anywhere(None), anywhere("broken")) == (None, "broken")
