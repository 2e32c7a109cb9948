"""The one formula for seeds: what proposal k draws depends on (seed, k, step) and on nothing else."""


def seed_of(seed: int, k: int, step: int = 0) -> int:
    """Of what proposal `k` draws at `step` (or in layer `step`), for a generator of its own.

    >>> seed_of(0, 1) != seed_of(1, 0) != seed_of(0, 1, 1)
    True
    """
    return (((seed * 1_000_003 + k) * 1009 + step) * 2 + 1) % 2**63
