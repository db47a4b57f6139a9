"""What a model makes of a row -> what is to be made small, and what is worth knowing of it."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.config import PreferenceSettings, Recipe
from foveal.data.forward_inputs import Batch, Pairs

SURE = 1e-7
"""Nats a token below which an answer counts as certain."""

PAIR_MEASURES: tuple[str, ...] = (
    "preferred",
    "margin",
    "chosen_log_probability",
    "rejected_log_probability",
    "distance",
)
"""Names of what a step says of its pairs; the last one where they are compared with a reference."""


class Objective:
    """What a run makes small, made of what `RowLoss` returns: here the loss of every answer."""

    measures: tuple[str, ...] = ()
    """Names of what `measure` sums."""

    def total(self, output: Tensor, batch: Batch) -> Tensor:
        """Sum the loss of a row, (), float32; a step divides by `Batch.count` over all rows."""
        return output

    def measure(self, output: Tensor, batch: Batch) -> list[float]:
        """Sum over the row what a step says besides, one number a name."""
        return []


ANSWERS = Objective()


class Preferences(Objective):
    """Of each pair, the chosen answer is to gain on the rejected one."""

    def __init__(self, settings: PreferenceSettings) -> None:
        self.settings = settings
        self.measures = PAIR_MEASURES if settings.compares else PAIR_MEASURES[:-1]

    def total(self, output: Tensor, batch: Batch) -> Tensor:
        """Sum the losses of the row's pairs, (), float32.

        Args:
            output: (answers,), log-probability of each, nats.
            batch: of the row.
        """
        assert batch.pairs is not None
        return pair_losses(output, batch.pairs, self.settings).sum()

    def measure(self, output: Tensor, batch: Batch) -> list[float]:
        """Sum over pairs: whether one is preferred, then by how many nats, and so on.

        Without a reference, an answer is measured by itself, by the token, and has no distance.
        """
        pairs = batch.pairs
        assert pairs is not None
        lengths = output.new_tensor(pairs.lengths)
        gains = output - pairs.reference if self.settings.compares else output / lengths
        margins = gains[pairs.chosen] - gains[pairs.rejected]
        distances = (gains[pairs.chosen].abs() + gains[pairs.rejected].abs()) / 2
        each = (
            (margins > 0).float(),
            margins,
            output[pairs.chosen],
            output[pairs.rejected],
            distances,
        )
        return [float(one.sum()) for one in each[: len(self.measures)]]


def objective_of(recipe: Recipe) -> Objective:
    """Choose what a recipe makes small."""
    return Preferences(recipe.preference) if recipe.learns_pairs else ANSWERS


def pair_losses(policy: Tensor, pairs: Pairs, settings: PreferenceSettings) -> Tensor:
    """Say how far each pair is from being preferred as it should.

    With r = log pi(y|x) - log pi_ref(y|x) of an answer y, and h = r(chosen) - r(rejected):

    - dpo: -log sigmoid(beta h); Rafailov et al. 2023, "Direct Preference Optimization", eq. 7.
    - cdpo: the same, where a share `label_smoothing` of the pairs is the other way round; Mitchell
      2023, "A note on DPO with noisy preferences & relationship to IPO".
    - ipo: (h - 1 / (2 beta))^2; Azar et al. 2023, "A General Theoretical Paradigm to Understand
      Learning from Human Preferences", eq. 17, beta being its tau. Its authors divide the r of an
      answer by its tokens, which the paper does not say: so does every trainer, and so do we.
    - orpo: -log pi(chosen) - beta log sigmoid(log odds(chosen) - log odds(rejected)); Hong et al.
      2024, "ORPO", eqs. 3 to 7, beta being its lambda. Log-probabilities are means over the tokens
      of an answer (eq. 1), and odds are p / (1 - p).

    `answer_weight` adds the mean loss of a token of the chosen answer, as do Pang et al. 2024,
    "Iterative Reasoning Preference Optimization", and, as w_g, Wang et al. 2024, "Enhancing the
    Reasoning Ability of Multimodal Large Language Models via Mixed Preference Optimization".

    Args:
        policy: (answers,), log-probability of each, nats.
        pairs: of them.
        settings: which loss.

    Returns:
        (pairs,), float32.
    """
    means = policy / policy.new_tensor(pairs.lengths)
    answer_weight = settings.answer_weight
    if settings.loss == "orpo":
        answer_weight += 1.0
        # Of an answer that is certain the odds have no end, nor their gradient.
        odds = means - torch.log(-torch.expm1(means.clamp(max=-SURE)))
        losses = -settings.beta * F.logsigmoid(odds[pairs.chosen] - odds[pairs.rejected])
    else:
        gains = policy - pairs.reference
        if settings.loss == "ipo":
            gains = gains / policy.new_tensor(pairs.lengths)
            margins = gains[pairs.chosen] - gains[pairs.rejected]
            losses = (margins - 1 / (2 * settings.beta)) ** 2
        else:
            margins = settings.beta * (gains[pairs.chosen] - gains[pairs.rejected])
            smoothing = settings.label_smoothing
            losses = -(1 - smoothing) * F.logsigmoid(margins) - smoothing * F.logsigmoid(-margins)
    return losses - answer_weight * means[pairs.chosen]


def means(names: tuple[str, ...], sums: list[float], count: float) -> Mapping[str, float]:
    """Divide what `measure` summed."""
    return {name: total / count for name, total in zip(names, sums, strict=True)} if count else {}
