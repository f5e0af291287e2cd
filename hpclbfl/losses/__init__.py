"""Losses, one file each.

A loss is made from its config and a `DataSpec`, and called with a net's outputs and the targets of a batch; it returns
the sum of its terms over the batch, a 0-d tensor. What it may have besides:

- `count(targets) -> int`: how many terms those are, tokens or pixels that count. Without it each sample is one. The
  gradient is divided by the count of all clients, which ranks agree on before the first backward pass of a step: the
  result does not depend on how terms are spread over samples, clients and ranks. While clients train alone each divides
  by its own count.
- `metrics(outputs, targets) -> dict[str, Tensor]`: sums over a batch, 0-d, of what an evaluation reports divided by the
  count; the same names for every batch.
- `summary(loss, metrics) -> dict[str, float]`: what is reported of these means, in place of `metrics`: a perplexity,
  say.
- `per_sample(outputs, targets) -> Tensor`: [b] the terms of each sample, of which the loss is the sum; without it there
  is no `gradients.sample_noise`.
- `evaluate(outputs, targets) -> Tensor`: the sum that an evaluation reports as its loss, where it is another one.
"""
