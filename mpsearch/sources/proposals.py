"""Images as a torchvision detector needs them: a two-stage one with the proposals that it makes in float."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from mpsearch.sources.data import DataSource
from mpsearch.sources.detectors import NeuralPart, TwoStage
from mpsearch.sources.split import Split
from recon.graph.samples import Samples

BATCH = 16


def prepared(data: DataSource, model: nn.Module) -> DataSource:
    """Shows a torchvision detector the size of its images; for a two-stage one, gives the images with their proposals.
    Any other data stays as it is."""
    if not isinstance(model, NeuralPart):
        return data
    (images, *_), where = data.calib.samples[:1].leaves, next(model.parameters()).device
    with torch.no_grad():
        model.features(images.to(where))
    if not isinstance(model, TwoStage):
        return data
    calib = _proposed(data.calib, model)
    return replace(data, calib=calib, val=None if data.val is None else _proposed(data.val, model))


def with_proposals(samples: Samples, model: nn.Module) -> Samples:
    """Images with the proposals that a two-stage detector makes of them; any other samples as they are."""
    if not isinstance(model, TwoStage) or len(samples.leaves) > 1:
        return samples
    (images,), where = samples.leaves, next(model.parameters()).device
    return Samples.of((images, model.proposed(images.to(where)).cpu()))


def _proposed(split: Split, model: TwoStage) -> Split:
    found = [with_proposals(samples, model).leaves[1] for samples, _ in split.batches(BATCH)]
    return Split.of((split.stored.leaves[0], torch.cat(found)), split.targets, split.normalization)
