"""What `hpclbfl sharpness` is asked for. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

from hpclbfl.core.errors import ConfigError

VECTORS = 10
"""Start vectors of a spectrum, unless another number is asked for."""


@dataclass(frozen=True)
class Options:
    """What is looked at, and how closely.

    Raises:
        ConfigError: an option of the spectrum without --lanczos.
    """

    samples: int = 1024
    """Training images that the loss is the mean of; no more than there are."""
    top: int = 1
    """Eigenvalues to find."""
    lanczos: int | None = None
    """M: products for the spectrum from each start vector; None: no spectrum."""
    vectors: int | None = None
    """V: start vectors that the spectrum is averaged over; None: VECTORS."""
    with_density: bool = False
    """Also write the spectrum as a curve."""
    seed: int = 0
    """Chooses images and start vectors: the same in all runs of a set, whatever the job's seed."""
    batch: int = 128
    """Images at a time on a rank."""
    tolerance: float = 1e-3
    """Residual over eigenvalue at which an eigenvalue has settled."""
    iterations: int = 100
    """Products for an eigenvalue, at most."""
    basis: int = 20
    """Lanczos vectors that are kept in memory while an eigenvalue is looked for."""

    def __post_init__(self) -> None:
        if self.lanczos is not None:
            return
        if self.with_density:
            raise ConfigError("--density: a density is drawn from the spectrum; give --lanczos M, too")
        if self.vectors is not None:
            raise ConfigError("--vectors: a spectrum is averaged over start vectors; give --lanczos M, too")

    def held_vectors(self, num_parameters: int) -> int:
        """Vectors of that many numbers that the host's memory holds at once, about."""
        eigenpairs = min(self.basis, num_parameters) + 2 * self.top
        spectrum = min(self.lanczos or 0, num_parameters) + self.top
        # The product, what is left of it, and the two vectors that it is made of.
        return max(eigenpairs, spectrum) + 4
