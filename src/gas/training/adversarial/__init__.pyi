from . import losses as losses, r3gan as r3gan, real as real, setup as setup, updates as updates
from .losses import (
    OBJECTIVES as OBJECTIVES,
    Critic as Critic,
    Discriminator as Discriminator,
    Objective as Objective,
    objective_by_name as objective_by_name,
)
from .r3gan import (
    CIFAR10 as CIFAR10,
    DIGITS as DIGITS,
    EMOJI as EMOJI,
    FFHQ64 as FFHQ64,
    MNIST as MNIST,
    R3GANDiscriminator as R3GANDiscriminator,
    load_discriminator as load_discriminator,
    stages as stages,
)
from .real import distill_real as distill_real, real_pairs as real_pairs
from .setup import (
    Adversary as Adversary,
    FixedNoiseCriterion as FixedNoiseCriterion,
    adversary_for as adversary_for,
    fit_adversarial as fit_adversarial,
)
