"""CrystalCoder (Crystal), LLM360's 7B for language and code: three phases on Cerebras machines, with muP.

Reproduces https://huggingface.co/LLM360/Crystal; values from LLM360's crystalcoder-train
(pretrain/params/phase{1,2,3}/params.yaml; rotary and biases from its Megatron port) and https://arxiv.org/abs/2411.04156.

Phase 1 plans a linear decay over 294,337 updates and is stopped on the way, after 79,721 in all. Phase 2 warms up again
over 86 updates, to where phase 1 stood, and goes down the same line to its end; its steps count from zero. Phase 3 is a
schedule of its own. Each phase is a run that starts from the one before.

Cost: 344.8 + 927.3 + 119.9 billion tokens, 1.5e22 + 4.0e22 + 5.1e21 FLOPs (`jaxllm show`); 16 Cerebras CS-2.
(Their own accounts add up to 1,300 and 1,382 billion tokens.) Expect after phase 3: MMLU 48.77, HumanEval 28.38, MBPP
37.84 (model card).

Unverified, and chosen here: what weight decay leaves out (norms and biases); whether phase 2 takes the moments along
(its params.yaml says is_pretrained_checkpoint: false, so yes) and phase 3 does (it says true, so no); standard
deviations are those before the cut; what scale_glu_initialization does (nothing here); which parameters their
`decoder_kernel: 0.0625` names (all matrices of layers). Shares are as published, to
four digits, and count in proportion to their sum.

The store stores/crystal holds the sources named below, in LLaMA's tokenizer with 32,032 ids, '</s>' closing every
document: SlimPajama in two halves (its even and its odd files), StarCoder with fill-in-the-middle at a rate of 0.9
(half of it suffix first), twice, with new splits each time, and StarCoder's Python, HTML, JavaScript and CSS three
times at a rate of 0.3.

    jaxllm train configs/crystal_7b.py:phase1 io.root=/mnt/runs data.store.path=/data/stores/crystal
    jaxllm train configs/crystal_7b.py:phase2 io.root=/mnt/runs data.store.path=/data/stores/crystal
    jaxllm train configs/crystal_7b.py:phase3 io.root=/mnt/runs data.store.path=/data/stores/crystal
    jaxllm train configs/crystal_7b.py:small
    jaxllm train configs/crystal_7b.py:small_phase2
    jaxllm train configs/crystal_7b.py:small_phase3
"""

from dataclasses import replace

from configs.data.python_stdlib import python_stdlib
from jaxllm.checkpoint.config import Checkpoints
from jaxllm.data.config import Data, Share, Stage, StoreAt
from jaxllm.models.config import Attention, LayerNorm, Model, Rope, SwiGlu
from jaxllm.models.mup import Mup
from jaxllm.optim.config import AdamW, LrMultiplier, warmup_linear
from jaxllm.parallel.config import Compute, Mesh
from jaxllm.run import RunConfig
from jaxllm.train.config import Evaluation, FromRun, Logging, Precision

STEPS_1, STEPS_2, STEPS_3 = 79_721, 214_387, 27_728
BATCH = 2112  # 66 x 16 machines x 2


def _model(mup: Mup, *, vocab_size: int, width: int, layers: int, heads: int, ffn: int) -> Model:
    return mup.apply(
        Model(
            vocab_size=vocab_size,
            width=width,
            layers=layers,
            attention=Attention(heads=heads, kv_heads=heads, head_width=width // heads, biases=("q", "k", "v", "o")),
            ffn=SwiGlu(width=ffn, bias=True),
            norm=LayerNorm(eps=1e-5),
            position=Rope(fraction=0.25, pairs="adjacent"),
            tied_embeddings=True,
        )
    )


def phase1() -> RunConfig:
    """SlimPajama's first half. The learning rate of update 79,721 would be 0.0087869."""
    mup = Mup()
    model = _model(mup, vocab_size=32_032, width=4096, layers=32, heads=32, ffn=10_922)
    return RunConfig(
        name="crystal-7b-phase1",
        seed=1,
        model=model,
        data=Data(
            store=StoreAt(path="stores/crystal"),
            seq_len=2048,
            attention="window",  # unverified
            stages=(
                Stage(
                    name="phase1",
                    steps=STEPS_1,
                    batch_size=BATCH,
                    mixture=(
                        Share(source="slimpajama-even.commoncrawl", weight=0.5335),
                        Share(source="slimpajama-even.c4", weight=0.2665),
                        Share(source="slimpajama-even.github", weight=0.0496),
                        Share(source="slimpajama-even.arxiv", weight=0.0433),
                        Share(source="slimpajama-even.book", weight=0.0413),
                        Share(source="slimpajama-even.wikipedia", weight=0.0342),
                        Share(source="slimpajama-even.stackexchange", weight=0.0317),
                    ),
                ),
            ),
        ),
        optimizer=AdamW(
            schedule=warmup_linear(
                peak=0.012, end=0.00012408, warmup_steps=86, decay_steps=294_337, stop_after=STEPS_1
            ),
            eps=1e-9,
            lr_multipliers=(LrMultiplier(role="matrix", value=mup.matrix_lr(model.width)),),
        ),
        precision=Precision(compute="bfloat16"),
        mesh=Mesh(dp=1, fsdp=-1),  # ours: they stream the weights of one layer at a time
        compute=Compute(remat="full"),
        checkpoints=Checkpoints(every_steps=1500, keep_every=1500),
        evaluation=Evaluation(every_steps=1500),
    )


def phase2() -> RunConfig:
    """SlimPajama's other half (37%) and StarCoder (63%), down the line that phase 1 left."""
    before = phase1()
    return replace(
        before,
        name="crystal-7b-phase2",
        start=FromRun(folder=before.name, step=STEPS_1, optimizer="keep"),
        data=replace(
            before.data,
            stages=(
                Stage(
                    name="phase2",
                    steps=STEPS_2,
                    batch_size=BATCH,
                    mixture=(
                        Share(source="slimpajama-odd.commoncrawl", weight=0.1984),
                        Share(source="slimpajama-odd.c4", weight=0.0991),
                        Share(source="slimpajama-odd.github", weight=0.0185),
                        Share(source="slimpajama-odd.arxiv", weight=0.0161),
                        Share(source="slimpajama-odd.book", weight=0.0154),
                        Share(source="slimpajama-odd.wikipedia", weight=0.0127),
                        Share(source="slimpajama-odd.stackexchange", weight=0.0118),
                        Share(source="starcoder-fim", weight=0.6281),
                    ),
                ),
            ),
        ),
        optimizer=replace(
            before.optimizer,
            schedule=warmup_linear(peak=0.0087825, end=0.00013679, warmup_steps=86, decay_steps=214_301),
        ),
    )


def phase3() -> RunConfig:
    """Python and web code, with a tenth of language. (The paper counts it as an adaptation that did not help.)"""
    before = phase2()
    return replace(
        before,
        name="crystal-7b-phase3",
        start=FromRun(folder=before.name, step=STEPS_2, optimizer="fresh"),
        data=replace(
            before.data,
            stages=(
                Stage(
                    name="phase3",
                    steps=STEPS_3,
                    batch_size=BATCH,
                    mixture=(
                        Share(source="starcoder-fim3.python", weight=0.3427),
                        Share(source="starcoder-fim3.html", weight=0.1854),
                        Share(source="starcoder-fim3.javascript", weight=0.1837),
                        Share(source="starcoder-fim3.css", weight=0.0879),
                        Share(source="starcoder-fim", weight=0.0334),
                        # The first tenth of each of these (data_subset 0.0-0.1), as sources of their own.
                        Share(source="slimpajama-tenth.wikipedia", weight=0.0584),
                        Share(source="slimpajama-tenth.commoncrawl", weight=0.0583),
                        Share(source="slimpajama-tenth.c4", weight=0.0169),
                        Share(source="slimpajama-tenth.arxiv", weight=0.0167),
                        Share(source="slimpajama-tenth.stackexchange", weight=0.0084),
                        Share(source="slimpajama-tenth.book", weight=0.0083),
                    ),
                ),
            ),
        ),
        optimizer=replace(
            before.optimizer, schedule=warmup_linear(peak=0.002, end=0.0002, warmup_steps=276, decay_steps=27_452)
        ),
        checkpoints=Checkpoints(every_steps=1000, keep_every=1000),
        evaluation=Evaluation(every_steps=1000),
    )


# ---- small siblings --------------------------------------------------------------------------------------------------

_PEAK, _END, _WARM = 0.012, 0.00012, 8
_PLANNED, _STOPPED = 400, 160  # updates of decay, and all updates of phase 1


def _line(step: int) -> float:
    """The learning rate at which phase 1 stands at an update, and phase 2 takes up again."""
    return _PEAK + (_END - _PEAK) * (step - _WARM) / _PLANNED


def _stage(name: str, steps: int, prose: float) -> tuple[Stage, ...]:
    shares = (Share(source="prose", weight=prose), Share(source="code", weight=1 - prose))
    return (Stage(name=name, steps=steps, batch_size=8, mixture=shares),)


def small() -> RunConfig:
    """Phase 1's parts in 1.1M parameters, four times as wide as what they are tuned at: minutes on a laptop."""
    mup = Mup(base_width=32)
    model = _model(mup, vocab_size=2048, width=128, layers=4, heads=4, ffn=341)
    return RunConfig(
        name="crystal-small",
        seed=1,
        model=model,
        data=Data(store=python_stdlib(), seq_len=128, attention="window", stages=_stage("phase1", _STOPPED, prose=0.9)),
        optimizer=AdamW(
            schedule=warmup_linear(peak=_PEAK, end=_END, warmup_steps=_WARM, decay_steps=_PLANNED, stop_after=_STOPPED),
            eps=1e-9,
            lr_multipliers=(LrMultiplier(role="matrix", value=mup.matrix_lr(model.width)),),
        ),
        checkpoints=Checkpoints(every_steps=80, keep_latest=2),
        evaluation=Evaluation(every_steps=80, windows=64),
        logging=Logging(every_steps=20, norms_every_steps=50),
    )


def small_phase2() -> RunConfig:
    """Language and code, down the line that `small` left."""
    before, decay = small(), _WARM + _PLANNED - _STOPPED
    return replace(
        before,
        name="crystal-small-phase2",
        start=FromRun(folder=before.name, step=_STOPPED, optimizer="keep"),
        data=replace(before.data, stages=_stage("phase2", _WARM + decay, prose=0.4)),
        optimizer=replace(
            before.optimizer,
            schedule=warmup_linear(peak=_line(_STOPPED), end=_END, warmup_steps=_WARM, decay_steps=decay),
        ),
    )


def small_phase3() -> RunConfig:
    """Mostly code, with a schedule of its own."""
    before = small_phase2()
    return replace(
        before,
        name="crystal-small-phase3",
        start=FromRun(folder=before.name, step=before.steps, optimizer="fresh"),
        data=replace(before.data, stages=_stage("phase3", 60, prose=0.1)),
        optimizer=replace(
            before.optimizer, schedule=warmup_linear(peak=0.002, end=0.0002, warmup_steps=6, decay_steps=54)
        ),
    )
