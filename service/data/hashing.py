"""SplitMix64 (Steele et al., 2014) on numpy arrays: what models/hashing.py is for torch.

Part of the dataset format: hashed ids, random splits and the order of an epoch depend on it.
"""

import numpy as np
from numpy.typing import NDArray


def mix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The generator's step and finaliser, entry by entry."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
