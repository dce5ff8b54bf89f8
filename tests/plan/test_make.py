"""What a plan says and in which order, with arithmetic in the compiler's place."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from configs.amber_7b import amber_7b
from jaxllm.cli import main
from jaxllm.core.config import override
from jaxllm.core.errors import LayoutError
from jaxllm.plan import make
from jaxllm.plan.estimate import estimate
from jaxllm.plan.make import make_plan
from jaxllm.plan.measure import Measured
from jaxllm.plan.report import print_plan
from jaxllm.plan.target import Target, target_of
from jaxllm.run import RunConfig

AMBER = override(amber_7b(), ["compute.remat=full"])

V5E = target_of("v5e", "16x16", 1, None)
MESH = ("mesh.fsdp=64", "mesh.tp=4", "mesh.sequence_parallel=true")
GIB = 2**30


class Compiler:
    """Stands in for `measured`: what arithmetic estimates is what is needed."""

    def __init__(self) -> None:
        self.asked: list[tuple[RunConfig, bool]] = []

    def __call__(
        self, run: RunConfig, target: Target, *, quick: bool = False, keep_hlo: Path | None = None
    ) -> Measured:
        self.asked.append((run, quick))
        found = estimate(run, target)
        mesh = {axis: getattr(run.mesh, axis) for axis in ("dp", "fsdp", "pp", "ep", "cp", "tp")}
        if found.bytes > target.usable_bytes:
            return Measured(
                problem="does not fit", oom=True, mesh=mesh, needed_bytes=found.bytes, available_bytes=15.75 * GIB
            )
        line = {"compute": found.compute, "memory": 0.1, "links": found.links, "network": 0.0, "bubble": 0.0}
        rows = [[["fsdp"], "all-gather", 32, 3.0 * GIB, 0.0]]
        return Measured(
            mesh=mesh, attention="blocks", peak_bytes=found.bytes, flops=1e15, roofline=line, collectives=rows
        )


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    made = Compiler()
    monkeypatch.setattr(make, "measured", made)
    monkeypatch.setattr(make, "require_compiler", lambda chip: None)
    return made


def said(report: dict[str, object]) -> str:
    console = Console(width=200, record=True, quiet=True)
    with console.capture() as captured:
        console.quiet = False
        print_plan(report, console)
    return captured.get()


def test_a_plan_says_what_binds_and_for_how_long(compiler: Compiler) -> None:
    run = override(AMBER, [*MESH, "evaluation.batch_size=16", "compute.attention=blocks"])
    report = make_plan(run, V5E)
    assert len(compiler.asked) == 1 and not compiler.asked[0][1]
    line = report["roofline"]
    assert line["step_seconds"] == max(line["seconds"].values())
    assert line["tokens_per_second"] == pytest.approx(2240 * 2048 / line["step_seconds"])
    assert line["days"] == pytest.approx(run.tokens / line["tokens_per_second"] / 86_400)
    assert 0 < line["mfu"] < 1 and line["mfu_serial"] < line["mfu"]
    text = said(report)
    assert "bound by compute" in text and "fsdp=64 tp=4 sp" in text and "3.000" in text
    assert "evaluation.batch_size=64 does" in text
    json.dumps(report, allow_nan=False)


def test_out_of_memory_offers_three_compiled_ways_out_cheapest_first(compiler: Compiler) -> None:
    run = override(AMBER, [*MESH, "compute.remat=none", "compute.micro_batch=null", "compute.attention=blocks"])
    report = make_plan(run, V5E)
    ways = report["ways_out"]
    assert report["measured"]["oom"] and len(ways) == 3
    costs = [way["roofline"]["step_seconds"] * 256 * (2 if "32x16" in way["options"] else 1) for way in ways]
    assert costs == sorted(costs)
    for way in ways:
        assert way["changes"] and way["measured"]["problem"] is None
        assert way["measured"]["peak_bytes"] <= V5E.usable_bytes
        assert (override(run, way["changes"]), True) in compiler.asked
    text = said(report)
    assert "does not fit" in text and " ".join(ways[0]["changes"]) in text and "bound by" not in text


def test_a_search_ranks_what_was_compiled_and_compiles_the_first_in_full(compiler: Compiler) -> None:
    run = override(AMBER, [*MESH, "compute.micro_batch=64", "compute.attention=blocks"])
    search = make_plan(run, V5E, search=True)["search"]
    speeds = [row["roofline"]["step_seconds"] for row in search["ranking"]]
    assert speeds == sorted(speeds) and len(speeds) > 3
    assert any(row.get("written") for row in search["ranking"])
    assert not search["ranking"][0].get("written")  # full recomputation in 35 rounds is not the best there is
    assert [quick for _, quick in compiler.asked].count(False) == 1
    assert search["fastest"]["changes"] == search["ranking"][0]["changes"]
    assert compiler.asked[-1] == (override(run, search["fastest"]["changes"]), False)


def test_a_compiler_that_refuses_says_nothing_of_memory(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    run = override(AMBER, [*MESH, "compute.micro_batch=64", "compute.attention=blocks"])
    before = make_plan(run, V5E, search=True, quick=True)["search"]["ranking"]
    first, refused = compiler.asked[1][0], 0  # after the config as it is written

    def never_so(run: RunConfig, target: Target, *, quick: bool = False, keep_hlo: Path | None = None) -> Measured:
        nonlocal refused
        if (run.mesh, run.compute.remat) != (first.mesh, first.compute.remat):
            return compiler(run, target, quick=quick)
        refused += 1
        return Measured(problem="a bug of the compiler")

    monkeypatch.setattr(make, "measured", never_so)
    after = make_plan(run, V5E, search=True, quick=True)["search"]["ranking"]
    mine = [row["changes"] for row in before if override(run, row["changes"]) == first]
    assert refused == 1 and mine
    assert [r["changes"] for r in before if r["changes"] not in mine] == [
        r["changes"] for r in after if r["changes"] in [b["changes"] for b in before]
    ]


def test_a_mesh_that_does_not_divide_is_refused_and_a_search_finds_one(compiler: Compiler) -> None:
    run = override(AMBER, ["mesh.fsdp=3", "mesh.tp=1", "compute.attention=blocks"])
    with pytest.raises(LayoutError, match="needs 3 devices"):
        make_plan(run, V5E)
    report = make_plan(run, V5E, search=True, quick=True)
    assert report["search"]["ranking"] and "fastest" not in report["search"]
    assert "as written: mesh" in said(report)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "plan needs --chip, one of v4, v5e"),
        (("--chip", "v5"), "did you mean"),
        (("--chip", "v5e"), "--topology 16x16"),
        (("--chip", "h100"), "--gpus N"),
        (("--chip", "h100", "--gpus", "64", "mesh.fspd=2"), "did you mean 'fsdp'"),
    ],
)
def test_a_mistake_is_one_line(arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["plan", "configs/amber_7b.py:amber_7b", *arguments])
    err = capsys.readouterr().err
    assert left.value.code == 2 and says in err and err.count("\n") == 1
