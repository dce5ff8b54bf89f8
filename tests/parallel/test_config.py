"""What can be said about how a step is computed, and what a mistake in it is told."""

import json

import pytest

from jaxllm.core.config import decode, encode, essential, override
from jaxllm.core.errors import ConfigError
from jaxllm.parallel.config import Compute, Named

NAMED = '{"kind":"Named","keep":["qkv","attention"],"offload":["widened"]}'


def test_remat_is_a_word_or_names_tensors() -> None:
    assert override(Compute(), ["remat=full"]).remat == "full"
    compute = override(Compute(), [f"remat={NAMED}"])
    assert compute.remat == Named(keep=("qkv", "attention"), offload=("widened",))
    assert decode(Compute, json.loads(json.dumps(encode(compute)))) == compute
    assert essential(compute) == {"remat": json.loads(NAMED)}
    assert override(compute, ["remat.keep=[]", "remat.offload=[]"]).remat == Named()
    assert override(compute, ["remat=none"]) == Compute()
    assert essential(Compute()) == {}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        (
            "remat=ful",
            "run.remat=\"ful\": input should be 'none', 'full', 'dots', 'dots_no_batch' or 'qkv_attention'",
        ),
        ('remat={"keep":["qkw"]}', "run.remat: a layer has no tensor 'qkw'; did you mean 'qkv'?"),
        (
            'remat={"offload":["x"]}',
            "run.remat: a layer has no tensor 'x'; known: attention, attention_out, experts_out, ffn_out, input, "
            "normed, qkv, widened",
        ),
        (
            'remat={"keep":["qkv"],"offload":["qkv"]}',
            "run.remat: 'qkv' is named twice; a tensor is either kept or offloaded",
        ),
        ('remat={"kind":"Name"}', "run.remat.kind=\"Name\": input should be 'Named'"),
        ('remat={"kind":"Named","of":[]}', "run.remat has no field 'of'; known: keep, offload"),
        ('remat={"kind":"Named","keep":"qkv"}', 'run.remat.keep="qkv": input should be a valid array'),
        (
            "attention=flash",
            "run.attention=\"flash\": input should be 'auto', 'reference', 'blocks', 'splash', 'cudnn' or 'pallas_gpu'",
        ),
    ],
)
def test_what_a_mistake_is_told(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override(Compute(), [assignment])
    assert str(caught.value) == message
