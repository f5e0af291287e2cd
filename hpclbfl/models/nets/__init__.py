"""Models, one file for each family.

Each is created from its config and a `DataSpec`: the shape of a sample and the number of classes. It is a torch module
that maps a batch of samples to logits [N, K]. torch is imported only when a model is created.
"""
