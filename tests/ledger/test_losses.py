import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxllm.core.errors import LedgerError
from jaxllm.ledger.losses import NEVER, LossLog, chunk_of


def some(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=n).astype(np.float32), rng.integers(0, 4096, n, dtype=np.int32)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


def test_nothing_is_there_before_something_is_written(tmp_path: Path) -> None:
    sums, counts = LossLog(tmp_path / "losses", positions=10_000, lineage=0).read(0, 10_000)
    assert np.isnan(sums).all()
    assert (counts == NEVER).all()
    assert not (tmp_path / "losses").exists()


@pytest.mark.parametrize("batch", [1, 16, 1000, 5000])
def test_losses_come_back_bit_for_bit_by_position(tmp_path: Path, batch: int) -> None:
    total = 20_011
    sums, counts = some(total)
    log = LossLog(tmp_path, positions=total, lineage=0)
    for start in range(0, total - 7, batch):  # the last seven stay unseen
        stop = min(start + batch, total - 7)
        log.write(start, sums[start:stop], counts[start:stop])
        if start // batch % 97 == 3:
            log.flush()
    log.flush()
    read = LossLog(tmp_path, positions=total, lineage=0).read(0, total)
    assert same(read[0][: total - 7], sums[: total - 7])
    assert same(read[1][: total - 7], counts[: total - 7])
    assert np.isnan(read[0][total - 7 :]).all()
    assert (read[1][total - 7 :] == NEVER).all()
    a, b = LossLog(tmp_path, positions=total, lineage=0).read(4090, 4103)
    assert same(a, sums[4090:4103])
    assert same(b, counts[4090:4103])


def test_writing_again_replaces_and_lineages_are_apart(tmp_path: Path) -> None:
    first, second = some(100, 1), some(40, 2)
    log = LossLog(tmp_path, positions=100, lineage=0)
    log.write(0, *first)
    log.write(30, *second)  # not behind what is held
    other = LossLog(tmp_path, positions=100, lineage=1)
    other.write(50, *some(10, 3))
    other.flush()
    sums, counts = log.read(0, 100)
    assert same(sums, np.concatenate([first[0][:30], second[0], first[0][70:]]))
    assert same(counts, np.concatenate([first[1][:30], second[1], first[1][70:]]))
    assert np.isnan(other.read(0, 50)[0]).all()


def test_buffers_of_the_caller_may_be_used_again(tmp_path: Path) -> None:
    sums, counts = some(8)
    log = LossLog(tmp_path, positions=8, lineage=0)
    log.write(0, sums, counts)
    kept = sums.copy()
    sums[:] = 0
    assert same(log.read(0, 8)[0], kept)


def test_a_nan_that_was_recorded_is_not_one_that_was_not(tmp_path: Path) -> None:
    nan = np.full(8192, np.nan, np.float32)
    nan[1:5] = np.array([0x7FC00001, 0xFFC00000, 0x7F800000, 0x80000000], np.uint32).view(np.float32)
    log = LossLog(tmp_path, positions=8192, lineage=0)
    log.write(0, nan, np.zeros(8192, np.int32))
    log.flush()
    assert len(list((tmp_path / "0" / "sum" / "c").iterdir())) == 2
    sums, counts = LossLog(tmp_path, positions=8192, lineage=0).read(0, 8192)
    assert same(sums, nan)
    assert (counts == 0).all()


def test_another_total_or_position_is_refused(tmp_path: Path) -> None:
    log = LossLog(tmp_path, positions=100, lineage=0)
    log.write(0, *some(10))
    log.flush()
    with pytest.raises(LedgerError, match=r"holds losses of \[100\] positions, the run has 101"):
        LossLog(tmp_path, positions=101, lineage=0)
    LossLog(tmp_path, positions=101, lineage=1)
    for position in (-1, 91, 100):
        with pytest.raises(LedgerError, match="outside the run's 100"):
            log.write(position, *some(10))
    with pytest.raises(LedgerError, match="outside the run's 100"):
        log.read(90, 101)


def test_other_types_are_refused(tmp_path: Path) -> None:
    log = LossLog(tmp_path, positions=100, lineage=0)
    sums, counts = some(10)
    for bad in ((sums.astype(np.float64), counts), (sums, counts.astype(np.int64)), (sums, counts.astype(np.float32))):
        with pytest.raises(ValueError, match="float32 and counts int32"):
            log.write(0, *bad)
    with pytest.raises(ValueError, match="vectors of one length"):
        log.write(0, sums, counts[:9])


def test_a_flipped_bit_in_a_chunk_is_found(tmp_path: Path) -> None:
    log = LossLog(tmp_path, positions=100, lineage=0)
    log.write(0, *some(100))
    log.flush()
    for name in ("sum", "tokens"):
        path = tmp_path / "0" / name / "c" / "0"
        good = path.read_bytes()
        for at in range(0, len(good), 7):
            path.write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :])
            with pytest.raises(LedgerError, match=name):
                LossLog(tmp_path, positions=100, lineage=0).read(0, 100)
        path.write_bytes(good)
    assert len(LossLog(tmp_path, positions=100, lineage=0).read(0, 100)[0]) == 100


def test_a_file_half_written_by_a_killed_writer_is_no_obstacle(tmp_path: Path) -> None:
    sums, counts = some(200)
    log = LossLog(tmp_path, positions=200, lineage=0)
    log.write(0, sums[:100], counts[:100])
    log.flush()
    for left in ("sum/c/0.__lock", "tokens/zarr.json.__lock"):  # tensorstore's names for them
        (tmp_path / "0" / left).write_bytes(b"half" * 1000)
    assert same(LossLog(tmp_path, positions=200, lineage=0).read(0, 100)[0], sums[:100])
    again = LossLog(tmp_path, positions=200, lineage=0)
    again.write(100, sums[100:], counts[100:])
    again.flush()
    assert same(LossLog(tmp_path, positions=200, lineage=0).read(0, 200)[0], sums)
    assert not list(tmp_path.rglob("*.__lock"))


def test_any_zarr_reader_can_open_the_arrays(tmp_path: Path) -> None:
    log = LossLog(tmp_path, positions=100, lineage=3)
    log.write(0, *some(100))
    log.flush()
    metadata = json.loads((tmp_path / "3" / "sum" / "zarr.json").read_text())
    assert (metadata["zarr_format"], metadata["shape"], metadata["data_type"]) == (3, [100], "float32")
    assert metadata["fill_value"] == "NaN"


def test_a_full_disk_is_an_os_error_and_loses_nothing_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = LossLog(tmp_path, positions=100, lineage=0)
    log.write(0, *some(50))
    log.flush()

    class Failing:
        def __getitem__(self, span: slice) -> "Failing":
            return self

        def write(self, values: np.ndarray) -> "Failing":
            return self

        def result(self) -> None:
            raise ValueError("RESOURCE_EXHAUSTED: No space left on device [os_error_code='28']")

    good = log._arrays
    log.write(50, *some(50, 1))
    log._arrays = {**good, "sum": Failing()}
    with pytest.raises(OSError, match="No space left") as caught:
        log.flush()
    assert caught.value.errno == 28
    # A position whose tokens are recorded has its sum, so they come second.
    assert (LossLog(tmp_path, positions=100, lineage=0).read(50, 100)[1] == NEVER).all()
    log._arrays = good
    assert same(log.read(50, 100)[0], some(50, 1)[0])


def test_files_stay_few_and_chunks_are_powers_of_two() -> None:
    for positions in (1, 4096, 10**5, 10**7, 3 * 10**9, 10**11):
        chunk = chunk_of(positions)
        assert chunk & (chunk - 1) == 0
        assert 4096 <= chunk <= 1 << 20
        if positions <= 1 << 30:
            assert -(-positions // chunk) <= 1024


def test_tensorstore_waits_until_it_is_needed() -> None:
    code = "import sys, jaxllm.ledger.losses, jaxllm.ledger.records, jaxllm.ledger.fold, jaxllm.ledger.lease\n"
    code += "assert not {'tensorstore', 'numpy', 'jax'} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
