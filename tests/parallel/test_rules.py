"""A misspelt or doubly used axis is an error, never a silent replication."""

import dataclasses

import pytest
from jax.sharding import PartitionSpec as P

from jaxllm.core.dims import ACTIVATION_AXES, PARAM_AXES
from jaxllm.core.errors import LayoutError
from jaxllm.parallel.config import AXES, Mesh
from jaxllm.parallel.rules import ActivationRules, ParamRules, activation_rules, partition_spec

BATCH, EMBED = ("dp", "fsdp", "ep"), ("fsdp", "ep", "cp")


def test_tables_name_mesh_axes_only() -> None:
    for rules in (ParamRules(), ActivationRules(), activation_rules(Mesh(sequence_parallel=True))):
        for axis, over in dataclasses.asdict(rules).items():
            assert isinstance(over, tuple) and set(over) <= set(AXES), axis


def test_tables_have_every_axis_of_the_legend_and_no_other() -> None:
    assert {f.name for f in dataclasses.fields(ParamRules)} == set(PARAM_AXES)
    assert {f.name for f in dataclasses.fields(ActivationRules)} == set(ACTIVATION_AXES)


def test_param_specs() -> None:
    rules = ParamRules()
    assert partition_spec(rules, ("layers", "embed", "heads", "head")) == P("pp", EMBED, "tp", None)
    assert partition_spec(rules, ("layers", "embed", "kv_heads", "head")) == P("pp", EMBED, "tp", None)
    assert partition_spec(rules, ("layers", "ffn", "embed")) == P("pp", "tp", EMBED)
    experts = partition_spec(rules, ("layers", "experts", "expert_embed", "ffn"))
    assert experts == P("pp", "ep", ("fsdp", "cp"), "tp")
    assert partition_spec(rules, ("vocab", "embed")) == P("tp", EMBED)
    assert partition_spec(rules, ("layers", "norm")) == P("pp", None)
    assert partition_spec(rules, ()) == P()


def test_activation_specs() -> None:
    plain, split = activation_rules(Mesh()), activation_rules(Mesh(sequence_parallel=True))
    assert partition_spec(plain, ("batch", "resid_seq", "embed")) == P(BATCH, "cp", None)
    assert partition_spec(split, ("batch", "resid_seq", "embed")) == P(BATCH, ("cp", "tp"), None)
    for rules in (plain, split):
        assert partition_spec(rules, ("batch", "seq", "heads", "head")) == P(BATCH, "cp", "tp", None)
        assert partition_spec(rules, ("batch", None, "vocab")) == P(BATCH, None, "tp")


def test_unknown_axes_are_errors() -> None:
    with pytest.raises(LayoutError, match=r"blocks\.q: .*parameters.*'emebd'; did you mean 'embed'\?"):
        partition_spec(ParamRules(), ("emebd", "heads"), "blocks.q")
    with pytest.raises(LayoutError, match="activations have no axis 'layers'"):
        partition_spec(ActivationRules(), ("layers",))
    with pytest.raises(LayoutError, match="parameters have no axis 'resid_seq'"):
        partition_spec(ParamRules(), ("resid_seq",))


def test_two_dimensions_on_one_mesh_axis_are_an_error() -> None:
    with pytest.raises(LayoutError, match="w: axes 'heads' and 'ffn' are both split over mesh axis 'tp'"):
        partition_spec(ParamRules(), ("heads", "ffn"), "w")
    with pytest.raises(LayoutError, match="'embed' and 'embed' are both split"):
        partition_spec(ParamRules(), ("embed", "embed"))
    with pytest.raises(LayoutError, match="'resid_seq' and 'heads'"):
        partition_spec(activation_rules(Mesh(sequence_parallel=True)), ("batch", "resid_seq", "heads"))
