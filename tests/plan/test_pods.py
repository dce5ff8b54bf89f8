"""Real models compiled for real pods, on this machine."""

import importlib.util
import json
from collections.abc import Callable
from dataclasses import asdict

import pytest

from configs.amber_7b import amber_7b
from configs.k2_65b import stage1
from jaxllm.cli import main
from jaxllm.core.config import override
from jaxllm.models.config import SwiGlu
from jaxllm.models.count import flops_per_token, parameters
from jaxllm.plan.make import closed
from jaxllm.plan.measure import Measured, main_batch, measured
from jaxllm.plan.target import target_of
from jaxllm.run import RunConfig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"),
]
AMBER: tuple[str, ...] = ()  # as it is written
# K2's 2,040 sequences divide over no more than 8 parts of a pod of 256 chips; 2,048 over all of them.
K2_BATCH = ("data.stages.0.batch_size=2048", "compute.micro_batch=256", "evaluation.batch_size=256")
K2 = (*K2_BATCH, "mesh.fsdp=64", "mesh.cp=1", "mesh.tp=4", "mesh.sequence_parallel=true")
PODS = [(amber_7b, AMBER, "v5e", "16x16"), (stage1, K2, "v5p", "4x8x8")]


@pytest.mark.parametrize(("config", "placement", "chip", "topology"), PODS, ids=["amber-7b", "k2-65b"])
def test_a_published_run_fits_a_pod(
    config: Callable[[], RunConfig], placement: tuple[str, ...], chip: str, topology: str
) -> None:
    """Held against arithmetic that shares nothing with the compiler: bytes of the state, FLOPs of the model, the bytes
    of parameters gathered and of gradients scattered."""
    target = target_of(chip, topology, 1, None)
    run = closed(override(config(), placement), target)
    found = measured(run, target, quick=True)
    assert found.problem is None
    assert found.mesh["tp"] == run.mesh.tp and found.attention
    # Weights, two moments and what is left whole, the norms' scales.
    each = 4 * parameters(run.model) / target.devices
    assert found.parameter_bytes == pytest.approx(each, rel=0.02)
    assert found.optimizer_bytes == pytest.approx(2 * each, rel=0.02)
    assert 4 * each < found.peak_bytes < target.chip.hbm_bytes
    tokens, model = main_batch(run) * run.data.seq_len, run.model
    assert isinstance(model.ffn, SwiGlu)
    own = flops_per_token(model, run.data.seq_len, causal=True)
    # 'full' runs every layer once more, but for its last product, which no gradient asks for; 'dots' keeps products.
    again = {"full": own / 3 - 2 * model.layers * model.width * model.ffn.width, "dots": 0}
    assert isinstance(run.compute.remat, str)
    assert 0.98 < found.flops * target.devices / ((own + again[run.compute.remat]) * tokens) < 1.05
    assert set(found.roofline) == {"compute", "memory", "links", "network", "bubble"}
    assert found.roofline["network"] == 0 and found.roofline["compute"] == found.flops / target.chip.flops
    gathered = sum(within for axes, kind, _, within, _ in found.collectives if "fsdp" in axes and kind != "all-to-all")
    rounds = main_batch(run) // (run.compute.micro_batch or 1)
    passes = 3 * rounds  # gathered forwards and backwards, gradients scattered
    assert gathered > 0.8 * passes * 2 * parameters(run.model) / run.mesh.tp
    assert Measured(**json.loads(json.dumps(asdict(found)))) == found


def test_what_does_not_divide_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["plan", "configs/amber_7b.py:amber_7b", "mesh.tp=1", "--chip", "v5e", "--topology", "16x16"])
    said = capsys.readouterr().err
    assert left.value.code == 2
    [line] = [x for x in said.splitlines() if x.startswith("jaxllm: ")]
    assert "448" in line and "fsdp" in line
