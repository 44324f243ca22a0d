"""The model and the images of a run, loaded when a step first needs them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from hwmodel import InputError
from mpsearch.files.folder import RunFolder
from mpsearch.finish.evaluate import Judge
from mpsearch.finish.examples import example_outputs, is_random, require_finite
from mpsearch.request.options import FinishOptions, ModelOptions
from mpsearch.run.clock import Clock
from mpsearch.show.console import Console
from mpsearch.sources.distilled import DISTILLED, MEASURED, make_distilled, read_distilled
from mpsearch.sources.images import DataSource, load_data
from mpsearch.sources.models import LoadedModel, load_model
from mpsearch.sources.split import Normalization, Split
from mpsearch.tasks.ending import endings
from mpsearch.tasks.registry import load_task
from mpsearch.tasks.task import Task
from recon.compute.arithmetic import best_device, keep_freed_memory
from recon.graph.network import Network, capture
from recon.graph.samples import Samples
from recon.likelihood.likelihood import Likelihood
from recon.settings import Settings


def load_float(options: ModelOptions, console: Console) -> LoadedModel:
    """The float model that was asked for."""
    if options.demo:
        console.note("embedded default: our own MobileNetV2 and rendered images; --weights and --data take yours")
    weights = None if options.weights is None else Path(options.weights)
    return load_model(options.model, weights, demo=options.demo)


def captured(model: LoadedModel) -> Network:
    """The captured model, on the compute device."""
    keep_freed_memory()
    module = model.model.to(best_device()).to(memory_format=torch.channels_last)
    return capture(module, Samples.noise(model.input_size), model.reference)


@dataclass
class Loaded:
    """Model and images by the options of a run, in its folder.

    `settings` is how finished models are reconstructed. Raises InputError, before anything is loaded, where the options
    make none.
    """

    options: FinishOptions
    folder: RunFolder
    console: Console
    clock: Clock = field(default_factory=Clock)
    settings: Settings = field(init=False)

    def __post_init__(self) -> None:
        options = self.options
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
            labels_needed=False,
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
    def calib(self) -> Split:
        """The calibration samples."""
        return Split.of(self.data.calib.x, None, self._normalization)

    @cached_property
    def calibration(self) -> Samples:
        """The calibration samples, as the network takes them."""
        return self.calib.samples

    @cached_property
    def validation(self) -> Split:
        """The validation samples. Raises InputError where there are none."""
        if self.data.val is None:
            raise InputError("measuring needs a val/ folder beside the calibration images")
        return Split.of(self.data.val.x, self.data.val.y, self._normalization)

    @property
    def _normalization(self) -> Normalization:
        return Normalization(self.model.mean, self.model.std)

    @cached_property
    def task(self) -> Task:
        """What the network is for."""
        return load_task(self.options.task)

    @cached_property
    def likelihood(self) -> Likelihood:
        """What the outputs mean, by the task, from the graph and the float outputs on calibration samples.

        Raises InputError where these are not what the task expects, or NaN or infinite.
        """
        outputs = example_outputs(self.network, self.calib)
        found = self.task.likelihood_of(outputs, endings(self.network))
        require_finite(found, outputs)
        if is_random(self.network, self.calib):
            self.console.note(
                "the network is random in eval mode (the same input gives different outputs): no two runs give the "
                "same, and figures are those of single draws; is there a dropout that is always on?"
            )
        return found

    @cached_property
    def judge(self) -> Judge:
        """What measures networks on the validation samples; doubts about the float network are noted."""
        made = Judge.of(self.network, self.task, self.likelihood, self.validation)
        for doubt in made.doubts:
            self.console.note(doubt)
        return made
