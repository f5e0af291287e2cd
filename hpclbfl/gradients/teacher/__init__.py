"""Teachers A(.) of the paper's Eq. 5, a file each: they map a large batch's gradient to one of a smaller batch.

S. Tyagi, "On Using Large-Batches in Federated Learning", section III-B: w <- w - lr A(G). A kind of teacher is made
from its config, and is a `hpclbfl.gradients.teacher.kind.Kind`; when it is trained is the same for all, see
`transform`.
"""
