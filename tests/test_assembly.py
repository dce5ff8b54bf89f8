"""What a run is computed with on a platform: chosen, said, or refused."""

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import pytest

from configs.amber_7b import amber_7b
from configs.debug import debug
from jaxllm.assembly import assemble, check_offload, chosen_attention
from jaxllm.cli import main
from jaxllm.core.errors import ConfigError
from jaxllm.models.config import Alibi, LayerKind
from jaxllm.ops.attention.choice import PREFERENCE
from jaxllm.parallel.config import Compute, Mesh, Named
from jaxllm.run import RunConfig
from jaxllm.sampling import anywhere


def amber(**model: Any) -> RunConfig:
    run = amber_7b()
    return dataclasses.replace(run, model=dataclasses.replace(run.model, **model))


def test_the_kernel_follows_from_model_data_precision_and_platform() -> None:
    within = dataclasses.replace(amber(), data=dataclasses.replace(amber().data, attention="document"))
    assert str(chosen_attention(amber(), "tpu")) == str(chosen_attention(within, "tpu")) == "splash"
    assert str(chosen_attention(amber(), "gpu")) == "cudnn"  # Amber attends across documents
    assert str(chosen_attention(within, "gpu")).startswith("pallas_gpu (cudnn does not keep documents apart")
    assert str(chosen_attention(amber(position=Alibi()), "tpu")) == "reference (splash has no ALiBi)"
    windows = amber(pattern=(LayerKind(window=512), LayerKind()))
    assert chosen_attention(windows, "gpu").kernel == "cudnn"
    assert chosen_attention(windows, "cpu").kernel == "blocks"


def test_a_kernel_of_another_platform_is_refused() -> None:
    run = dataclasses.replace(amber(), compute=Compute(attention="splash"))
    with pytest.raises(ConfigError, match=r"^compute\.attention=splash: it runs on tpu, not on cpu; use blocks or"):
        chosen_attention(run, "cpu")


def test_texts_are_continued_on_another_machine_than_the_runs_own() -> None:
    compute = Compute(attention="splash", expert_exchange="ragged", remat=Named(offload=("qkv",)))
    run = dataclasses.replace(debug(), compute=compute, mesh=Mesh(dp=1, fsdp=64, cp=4))
    parts = assemble(anywhere(run))
    assert parts.mesh.size == 1 and parts.attention.kernel in PREFERENCE["cpu"]


def test_offloading_is_refused_where_there_is_no_other_memory() -> None:
    run = dataclasses.replace(debug(), compute=Compute(remat=Named(offload=("qkv",))))

    def device(*memories: str) -> Any:
        kinds = [SimpleNamespace(kind=kind) for kind in memories]
        return SimpleNamespace(device_kind="thing", addressable_memories=lambda: kinds)

    check_offload(run, device("device", "pinned_host"))
    check_offload(run, device())
    check_offload(dataclasses.replace(run, compute=Compute(remat=Named(keep=("qkv",)))), device("device"))
    with pytest.raises(ConfigError, match=r"^compute.remat.offload=\['qkv'\]: thing has no memory 'pinned_host'; "):
        check_offload(run, device("device"))


def test_show_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["show", "configs/debug.py", "data.seq_len=100", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert (report["attention"], report["attention_why"]) == ("reference", "blocks pays from 128 positions on")
    with pytest.raises(SystemExit):
        main(["show", "configs/debug.py", "mesh.dp=1", "mesh.cp=2", "compute.attention=splash", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert (report["attention"], report["attention_why"]) == ("blocks", "those of the ring over cp")
