"""Maximal update parametrization: from the width at which a recipe was tuned to what a wider model needs.

Tensor Programs V (https://arxiv.org/abs/2203.03466), in the form that Cerebras trains: with learning rates and initial
values scaled like this, activations and their changes keep their size as the width grows, and so does the best
learning rate. No arrays and no jax: configs compute with it.
"""

import math
from dataclasses import replace

from jaxllm.core.config import config
from jaxllm.models.config import Model, NormalInit


@config
class Mup:
    """A recipe tuned at `base_width`.

    std: of the embeddings at every width, of the matrices at base_width; cut: at how many standard deviations both are
    cut off. embedding_scale: factor on the looked-up rows. output_scale: factor on the logits at base_width.
    """

    base_width: int = 256
    std: float = 0.073
    cut: float | None = 2.0
    embedding_scale: float = 14.6
    output_scale: float = 2.22

    def matrix_lr(self, width: int) -> float:
        """The factor on the learning rate of matrices; all else learns at the base rate."""
        return self.base_width / width

    def apply(self, model: Model) -> Model:
        """`model` with the multipliers, the attention scale and the initial values that belong to its width and depth.

        Embeddings are best tied: the factor on the logits is then all that a head needs.
        """
        shrink = self.base_width / model.width
        return replace(
            model,
            attention=replace(model.attention, scale="linear"),
            embedding_scale=self.embedding_scale,
            logit_scale=self.output_scale * shrink,
            init=NormalInit(
                std=self.std * math.sqrt(shrink), residual="depth_scaled", embedding_std=self.std, cut=self.cut
            ),
        )
