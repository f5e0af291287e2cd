"""What a rank tells all others in a few bits: each flag is or-ed over the ranks."""

from __future__ import annotations

TIME_UP = 1
"""Of rank 0: the job's seconds are over."""
CHANGED = 2
"""One of the rank's clients saw its gradient change (SelSync)."""
STOP = 4
"""The rank was asked to stop."""
SAVE = 8
"""Of rank 0: it is time for a checkpoint."""
NONFINITE = 16
"""The rank saw a gradient that is not finite."""
UNKNOWN = 32
"""One of the rank's clients cannot tell yet whether its gradient changes (SelSync)."""
