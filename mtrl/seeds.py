"""Every random stream of a run, from its one seed: named children of one SeedSequence.

Neighbouring seeds share no stream, and no two users within a run do, except that environments of evaluations
have the streams of those of training. Imports neither torch nor what draws from the streams. What upstream
Meta-World draws from the bare seed (its goal sets) is not among them.
"""

import numpy as np

# The position is the key of the stream: new names go to the end, so that the others keep their numbers.
STREAMS = (
    "networks",  # initial parameters
    "agent",  # action noise
    "replay",  # rows of batches
    "exploration",  # random actions of the warm-up
    "goals",  # order of goals in each environment
    "critic_combiner",
    "actor_combiner",
    "environments",  # dynamics of suites that draw their own randomness
    "noise_hold",  # exploration noise that environments hold
)


def sequence(seed: int, stream: str, child: tuple[int, ...] = ()) -> np.random.SeedSequence:
    """Return the SeedSequence of one named stream, or of a numbered child of it."""
    return np.random.SeedSequence(seed, spawn_key=(STREAMS.index(stream), *child))


def generator(seed: int, stream: str) -> np.random.Generator:
    """Return a NumPy generator of one named stream."""
    return np.random.default_rng(sequence(seed, stream))


def integer(seed: int, stream: str) -> int:
    """Return 63 bits of one named stream, for torch's `manual_seed` or a counter-based stream."""
    return int(sequence(seed, stream).generate_state(1, np.uint64)[0] >> np.uint64(1))
