"""How large a batch a device can train, which size trains fastest, and how heterogeneous ranks share the work.

Section III-A of the paper: memory by component and batch size (Eq. 3), time of a step (Eq. 2) and of an epoch, and the
network; every prediction is compared with measurements at batch sizes that the fit has not seen.
"""
