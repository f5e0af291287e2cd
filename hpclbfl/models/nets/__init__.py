"""Models, one file for each family.

Each is made from its config and a `DataSpec`: shape and type of a sample's input and target, and the number of classes.
It is a torch module that maps a batch of inputs to what the job's loss takes: logits [N, K] for cross-entropy. The
package's own take images; one of the user's takes what its data set gives. Its weights are drawn from torch's global
generator, which was seeded before. torch is loaded only when a net is made.
"""
