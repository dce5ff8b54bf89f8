"""Which steps go, and how many lie side by side."""

from hypothesis import given
from hypothesis import strategies as st

from jaxllm.checkpoint.config import Checkpoints
from jaxllm.checkpoint.retention import is_pinned, is_save_step, most_at_once, superseded

configs = st.builds(
    lambda every, latest, multiple, named: Checkpoints(
        every_steps=every, keep_latest=latest, keep_every=multiple and multiple * every, keep_steps=tuple(named)
    ),
    st.integers(1, 5),
    st.integers(1, 4),
    st.none() | st.integers(1, 4),
    st.lists(st.integers(1, 60), max_size=3),
)


@given(configs, st.sets(st.integers(1, 60)), st.sets(st.integers(1, 60)))
def test_what_stays(config: Checkpoints, steps: set[int], damaged: set[int]) -> None:
    gone = superseded(config, steps, lambda s: s not in damaged)
    assert gone == sorted(gone) and set(gone) <= steps
    good = sorted(steps - damaged)
    scheduled = [s for s in good if is_save_step(config, s)]
    assert not set(gone) & {*scheduled[-config.keep_latest :], *good[-1:]}
    assert not any(is_pinned(config, s) for s in gone)
    oldest = scheduled[-config.keep_latest] if len(scheduled) >= config.keep_latest else 0
    newest = good[-1] if good else 0
    for step in steps - set(gone):  # everything that neither is among the newest nor pinned has gone
        assert is_pinned(config, step) or step >= (oldest if is_save_step(config, step) else newest)


@given(configs, st.sets(st.integers(1, 60)), st.sets(st.integers(1, 60)))
def test_stopping_a_run_takes_no_scheduled_checkpoint(config: Checkpoints, one: set[int], other: set[int]) -> None:
    scheduled = {s for s in range(1, 61) if is_save_step(config, s)}
    left = [(scheduled | stops) - set(superseded(config, scheduled | stops)) for stops in (one, other)]
    assert left[0] & scheduled == left[1] & scheduled


@given(configs, st.integers(1, 60))
def test_the_most_at_once_is_what_a_run_would_hold(config: Checkpoints, last: int) -> None:
    held: list[int] = []
    most = 0
    for step in range(1, last + 1):
        held.append(step)  # stopped after every step
        most = max(most, len(held))
        held = [s for s in held if s not in superseded(config, held)]
    assert most_at_once(config, last) == most


def test_steps_kept_by_name_are_saved() -> None:
    config = Checkpoints(every_steps=100, keep_steps=(150,))
    assert [s for s in range(401) if is_save_step(config, s)] == [100, 150, 200, 300, 400]
