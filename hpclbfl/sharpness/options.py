"""The options of `hpclbfl sharpness`. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

from hpclbfl.core.errors import ConfigError

VECTORS = 10
"""Start vectors of a spectrum, unless another number is asked for."""


@dataclass(frozen=True)
class Options:
    """Which eigenvalues, of which loss, and how precisely.

    Raises:
        ConfigError: an option of the spectrum without --lanczos.
    """

    samples: int = 1024
    """Training samples in the loss; all where there are fewer."""
    top: int = 1
    """Eigenvalues to find."""
    lanczos: int | None = None
    """M: Lanczos steps for the spectrum from each start vector; None: no spectrum."""
    vectors: int | None = None
    """V: start vectors that the spectrum is averaged over; None: VECTORS."""
    density: bool = False
    """Also write the spectrum as a curve."""
    seed: int = 0
    """Of the choice of samples and start vectors, independent of the job's seed."""
    batch: int = 128
    """Images at a time on a rank."""
    tolerance: float = 1e-3
    """Relative residual at which an eigenvalue has converged."""
    iterations: int = 100
    """Largest number of products per eigenvalue."""
    basis: int = 20
    """Lanczos vectors in memory per eigenvalue search."""

    def __post_init__(self) -> None:
        if self.lanczos is not None:
            return
        if self.density:
            raise ConfigError("--density: a density is drawn from the spectrum; give --lanczos M, too")
        if self.vectors is not None:
            raise ConfigError("--vectors: a spectrum is averaged over start vectors; give --lanczos M, too")

    def held_vectors(self, num_parameters: int) -> int:
        """Approximate number of vectors that the host's memory holds at once."""
        eigenpairs = min(self.basis, num_parameters) + 2 * self.top
        spectrum = min(self.lanczos or 0, num_parameters) + self.top
        # The product, its orthogonal part, and the two vectors that it is computed from.
        return max(eigenpairs, spectrum) + 4
