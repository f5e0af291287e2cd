"""Data sets, one file each; a set is made from its config, which has the keys that it alone understands.

One of the user's own has `train` and `test`, each either of two things:

- arrays, as `hpclbfl.data.examples.Examples(inputs, targets)` or anything with these attributes: [N, ...] of any shape,
  NumPy's or torch's;
- an object with `len()` and `batch(samples, passes)` that returns inputs and targets of these places (int64 [b]), made
  when they are asked for; `passes` (int64 [b]) says how often each was seen before, 0 in an evaluation. The same
  arguments give the same batch. Its `fingerprint`, a text, names what it holds: a run is not continued on other data.
  Of arrays the content is hashed.

Whole numbers stay as they are, targets become int64; floating point becomes the job's type. What a set may have
besides:

- `classes`, names of what targets stand for, where each sample's target is one class: accuracies are then measured;
- in each split `labels`, whole numbers [N], by which partitions deal; by default the targets, where they are classes;
- in each split `groups`, whole numbers [N]: whose each sample is, for the partition `natural`.

Keys of its `Config` of the type `hpclbfl.config.sections.base.PathText` are relative to the job file, and no part of a
run's hash.
"""
