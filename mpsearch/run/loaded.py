"""The model and the images of a run, loaded when a step first needs them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from hwmodel import InputError
from mpsearch.files.folder import RunFolder
from mpsearch.finish.evaluate import Evaluation, evaluate, logits
from mpsearch.request.options import FinishOptions, ModelOptions
from mpsearch.run.clock import Clock
from mpsearch.run.place import place
from mpsearch.show.console import Console
from mpsearch.sources.distilled import DISTILLED, MEASURED, make_distilled, read_distilled
from mpsearch.sources.images import DataSource, Images, load_data, normalize
from mpsearch.sources.models import LoadedModel, load_model
from recon.compute.arithmetic import keep_freed_memory
from recon.graph.network import Network, capture
from recon.graph.samples import Samples
from recon.settings import Settings


def load_float(options: ModelOptions, console: Console) -> LoadedModel:
    """The float model that was asked for, on the device that computes."""
    if options.demo:
        console.note("embedded default: our own MobileNetV2 and rendered images; --weights and --data take yours")
    weights = None if options.weights is None else Path(options.weights)
    model = load_model(options.model, weights, demo=options.demo)
    model.model.to(place(options))
    return model


def captured(model: LoadedModel) -> Network:
    """The captured model, on its device."""
    keep_freed_memory()
    module = model.model.to(memory_format=torch.channels_last)
    return capture(module, Samples.noise(model.input_size), model.reference)


@dataclass
class Loaded:
    """Model and images by the options of a run, in its folder.

    `settings` is how finished models are reconstructed, `place` the device that computes. Raises InputError, before
    anything is loaded, where the options make none.
    """

    options: FinishOptions
    folder: RunFolder
    console: Console
    clock: Clock = field(default_factory=Clock)
    settings: Settings = field(init=False)
    place: torch.device = field(init=False)

    def __post_init__(self) -> None:
        options = self.options
        self.place = place(options)
        self.settings = Settings(
            steps=options.steps,
            seed=options.seed,
            granularity=options.granularity,  # type: ignore[arg-type]
            symmetric=options.symmetric,
        )

    @cached_property
    def model(self) -> LoadedModel:
        """The float model."""
        return load_float(self.options, self.console)

    @cached_property
    def network(self) -> Network:
        """The captured model, on the compute device."""
        return captured(self.model)

    @cached_property
    def data(self) -> DataSource:
        """The calibration and validation images."""
        if self.options.data == DISTILLED:
            return self._distilled()
        return load_data(
            self.options.data,
            input_size=self.model.input_size,
            calib_samples=self.options.samples,
            val_samples=self.options.val_samples or None,
            seed=self.options.seed,
            classes=self.model.classes,
        )

    def _distilled(self) -> DataSource:
        what = self.model, self.options.samples, self.options.seed, self.folder.file("distilled.npz")
        kept = read_distilled(*what)
        if kept is not None:
            return kept
        total = self.options.samples + MEASURED
        with self.clock.timed("distillation"), self.console.progress("distillation", total) as advance:
            return make_distilled(*what, lambda done, _: advance(done))

    @cached_property
    def calibration(self) -> Samples:
        """The calibration samples, as the model takes them."""
        return Samples.of(normalize(self.data.calib.x, self.model.mean, self.model.std))

    @property
    def validation(self) -> Images:
        """The validation images. Raises InputError where there are none."""
        if self.data.val is None:
            raise InputError("measuring needs a val/ folder beside the calibration images")
        return self.data.val

    @cached_property
    def float_logits(self) -> torch.Tensor:
        """The float model's logits on the validation images, what quantized ones are measured against."""
        return logits(self.network.model, self.validation, self.model.mean, self.model.std)

    def measure(self, model: torch.nn.Module) -> Evaluation:
        """Accuracy and KL divergence from the float model on the validation images."""
        return evaluate(model, self.validation, self.model.mean, self.model.std, reference_logits=self.float_logits)
