"""How large a batch a device takes, which size trains fastest, and how unlike ranks share the work.

Section III-A of the paper: memory by component and batch size (Eq. 3), time of a step (Eq. 2) and of an epoch, the
network on top; every prediction beside what was measured at batch sizes that the fit has not seen.
"""
