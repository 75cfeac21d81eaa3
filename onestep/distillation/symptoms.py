"""Known failures of a distillation, recognised by the values of its diagnosis. docs/diagnosis.md has their remedies."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

#: Half of the ratios beyond exp(+-10): the sigmoid of such a logit is within 5e-5 of 0 or 1, and so are the gradient of
#: the adversarial term and the weight of a bounded divergence, whatever the sample. Trained critics of the digits and
#: the mixture have a median |log r| below 2.
_SATURATED = 10.0
#: The weights of a bounded divergence vary by less than 0.1 % of their range. The weakest critic of a healthy run, on
#: the digits at the highest noise, has a median |log r| of 3e-3, and ten times this at other levels.
_BLIND = 2e-3
#: Nats of the logistic loss of real images, of which 0.69 is that of no knowledge; and its certainty, in standard
#: errors. Healthy runs are within 0.02.
_OVERFITTED, _ERRORS = 0.05, 2.0
#: A spread below 0.6 of the teacher's is 0.36 of its variance. Healthy runs are within 0.05 of 1 from their first
#: evaluation on.
_CONTRACTING = 0.6
#: Samples that are half as far from each other as the teacher's. Healthy runs are above 0.9.
_NARROW = 0.5
#: Of a batch of 128, weights like these leave the noise of 13 samples.
_FEW = 0.1
#: A trained fake score does not gain from a few updates with another learning rate: healthy runs are below 0.01.
_LAGGING = 0.05


@dataclass(frozen=True)
class Values:
    """The values of a diagnosis."""

    values: Mapping[str, float]

    def of(self, name: str) -> float:
        """One value; not a number, which is in no range, if it was not measured."""
        return self.values.get(name, math.nan)

    def by_level(self, name: str) -> dict[str, float]:
        """The values of all bins by their level."""
        prefix = f"{name}/"
        return {key.removeprefix(prefix): value for key, value in self.values.items() if key.startswith(prefix)}


def saturated(values: Values) -> str | None:
    """The critic is certain of most samples."""
    sizes = values.by_level("log_ratio_size")
    beyond = [level for level, size in sizes.items() if not size <= _SATURATED]
    if 2 * len(beyond) < max(1, len(sizes)):
        return None
    return (
        f"the critic is saturated: half of its |log r| are above {_SATURATED:g} at the noise levels "
        f"{', '.join(beyond)}, so that it tells samples from each other no more: lower optimizer.discriminator.lr, or "
        "add a penalty"
    )


def blind(values: Values) -> str | None:
    """The critic says the same of all samples."""
    sizes = values.by_level("log_ratio_size")
    if not sizes or not max(sizes.values()) < _BLIND:
        return None
    return (
        f"the critic is blind: its |log r| are below {_BLIND:g} at all noise levels, so that the ratio weights no "
        "sample: raise optimizer.discriminator.lr, or use another discriminator"
    )


def overfitted(values: Values) -> str | None:
    """The critic has learned its training images."""
    excess, error = values.of("overfitting"), values.of("overfitting_error")
    if not (excess > _OVERFITTED and excess > _ERRORS * error):
        return None
    return (
        f"the critic is over-fitted: its loss of real images that it has not seen is {excess:.2f} nats above that of "
        "its training images: use more images, augment=edm, a penalty, or a lower optimizer.discriminator.lr"
    )


def contracting(values: Values) -> str | None:
    """The samples shrink towards their mean."""
    spread = values.of("spread")
    if not spread < _CONTRACTING:
        return None
    return (
        f"samples contract: the standard deviation of samples of one condition is {spread:.2f} of the teacher's: use "
        "an objective with a fake score, more fake_score.steps, or a lower optimizer.generator.lr"
    )


def narrow(values: Values) -> str | None:
    """The samples resemble each other."""
    diversity = values.of("diversity")
    if not diversity < _NARROW:
        return None
    return (
        f"diversity falls: samples of one condition are {diversity:.2f} times as far from each other as the teacher's: "
        "use divergence=forward_kl or jensen_shannon, a larger generator.gan_weight, or a regression on pairs"
    )


def few(values: Values) -> str | None:
    """A few samples carry the gradient."""
    fractions = values.by_level("effective_samples")
    carried = [level for level, fraction in fractions.items() if fraction < _FEW]
    if not carried:
        return None
    least = min(fractions[level] for level in carried)
    return (
        f"few samples carry the weights: {least:.1%} of them are effective at the noise levels {', '.join(carried)}: "
        "use a bounded divergence such as jensen_shannon, normalizer=quantile_bins, or a larger training.batch_size"
    )


def lagging(values: Values) -> str | None:
    """The fake score is not that of the generator."""
    lag = values.of("fake_score_lag")
    if not lag > _LAGGING:
        return None
    return (
        f"the fake score lags behind the generator: a few updates of a copy lower its loss by {lag:.0%}: use more "
        "fake_score.steps, a higher optimizer.fake_score.lr, or a lower optimizer.generator.lr"
    )


#: The check of each symptom by its name: a message, or None.
SYMPTOMS: Mapping[str, Callable[[Values], str | None]] = {
    "critic_saturated": saturated,
    "critic_blind": blind,
    "critic_overfitted": overfitted,
    "samples_contracting": contracting,
    "diversity_falling": narrow,
    "few_effective_samples": few,
    "fake_score_lagging": lagging,
}


def symptoms_of(values: Mapping[str, float]) -> dict[str, str]:
    """The message of each symptom that ``values`` show."""
    found = {name: check(Values(values)) for name, check in SYMPTOMS.items()}
    return {name: message for name, message in found.items() if message is not None}
