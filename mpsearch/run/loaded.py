"""The model and the images of a run, loaded when a step first needs them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch

from hwmodel import BitConfig, InputError
from hwmodel.target import load_target
from mpsearch.files.folder import RunFolder
from mpsearch.finish.evaluate import Judge
from mpsearch.finish.examples import example_outputs, is_random, require_finite
from mpsearch.request.options import FinishOptions, ModelOptions
from mpsearch.run.clock import Clock
from mpsearch.run.expected import Stage, Work, expected, require_room
from mpsearch.run.memory import rooms, rss_bytes
from mpsearch.run.place import place
from mpsearch.show.console import Console
from mpsearch.sources.batches import positional_inputs
from mpsearch.sources.data import MIN_CALIBRATION, DataSource, load_data
from mpsearch.sources.detection_data import BoxOptions, load_detection
from mpsearch.sources.detectors import NeuralPart
from mpsearch.sources.distilled import DISTILLED, MEASURED, make_distilled, read_distilled
from mpsearch.sources.models import LoadedModel, load_model
from mpsearch.sources.proposals import prepared, with_proposals
from mpsearch.sources.split import Split
from mpsearch.tasks.boxes import CONFIDENCE, OVERLAP, Suppression
from mpsearch.tasks.detection import NAME as DETECTION
from mpsearch.tasks.ending import endings
from mpsearch.tasks.registry import load_detection_task, load_task
from mpsearch.tasks.task import Task
from mpsearch.tasks.torchvision_detection import torchvision_task
from recon.compute.arithmetic import keep_freed_memory
from recon.graph.network import Network, capture
from recon.graph.samples import Samples
from recon.likelihood.likelihood import Likelihood
from recon.quantizers.quantized import input_bits
from recon.reconstruct import Prepared, prepare
from recon.settings import Settings

EXAMPLE = 3  # samples that a network is captured with


def load_float(options: ModelOptions, console: Console, trained: bool = True) -> LoadedModel:
    """The float model that was asked for, on the device that computes; where it need not be `trained`, its architecture
    will do."""
    if options.demo and trained:
        console.note("embedded default: our own MobileNetV2 and rendered images; --weights and --data take yours")
    weights = None if options.weights is None else Path(options.weights)
    model = load_model(
        options.model,
        weights,
        demo=options.demo,
        weights_key=options.weights_key,
        input_size=options.input_size,
        trained=trained,
    )
    model.model.to(place(options))
    for note in model.notes:
        console.note(note)
    return model


def captured(model: LoadedModel, example: Samples) -> Network:
    """The captured model, on its device; `example` is a batch that it takes."""
    keep_freed_memory()
    module = model.model
    for part in (*module.parameters(), *module.buffers()):
        if part.dim() == 4:
            part.data = part.data.contiguous(memory_format=torch.channels_last)
    plain = Samples(tuple(leaf.contiguous() for leaf in example.leaves), example.spec)
    return capture(module, plain, model.reference)


def captured_alone(options: ModelOptions, console: Console) -> tuple[LoadedModel, Network]:
    """The model, and its graph for the shapes of its data, where there are any, or of the input that is known.

    Raises InputError where nothing says what the model takes.
    """
    model = load_float(options, console, trained=False)
    if options.data not in (None, DISTILLED):
        example = next(_data(model, options.data, MIN_CALIBRATION, 1, 0).calib.batches(EXAMPLE))[0]
    elif model.input_size is not None:
        example = Samples.noise(model.input_size)
    else:
        raise InputError(
            f"nothing says what {model.reference} takes: give --input 3x224x224, or --data, "
            "or input_size in a JSON beside it"
        )
    return model, captured(model, with_proposals(example, model.model))


def _data(model: LoadedModel, path: str | None, calib_samples: int, val_samples: int | None, seed: int) -> DataSource:
    return load_data(
        path,
        input_size=model.input_size,
        normalization=model.normalization,
        calib_samples=calib_samples,
        val_samples=val_samples,
        seed=seed,
        takes=positional_inputs(model.model),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """A model, its samples and its task that are in memory already."""

    model: LoadedModel
    data: DataSource
    task: Task


@dataclass
class Loaded:
    """Model and samples by the options of a run, in its folder, or as they were `given`.

    `settings` is how finished models are reconstructed, `place` the device that computes. Raises InputError, before
    anything is loaded, where the options make none.
    """

    options: FinishOptions
    folder: RunFolder
    console: Console
    clock: Clock = field(default_factory=Clock)
    given: Given | None = None
    settings: Settings = field(init=False)
    place: torch.device = field(init=False)
    _prepared: tuple[dict[str, int], Prepared] | None = field(init=False, default=None)
    _asked: set[Stage] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        options = self.options
        self.place = place(options)
        self.settings = Settings(
            steps=options.steps,
            seed=options.seed,
            granularity=options.granularity,  # type: ignore[arg-type]
            symmetric=options.symmetric_bits,
            below_caps=options.target is not None and load_target(options.target).cuts_by_range,
        )

    @cached_property
    def model(self) -> LoadedModel:
        """The float model."""
        if self.given is not None:
            self.given.model.model.to(self.place)
            return self.given.model
        return load_float(self.options, self.console)

    @cached_property
    def network(self) -> Network:
        """The captured model, on the compute device."""
        network = captured(self.model, next(self.data.calib.batches(EXAMPLE))[0])
        return network if self.options.channel_steps else network.with_one_step()

    @cached_property
    def data(self) -> DataSource:
        """The calibration and validation samples."""
        options = self.options
        if self.given is not None:
            return self.given.data
        if options.data == DISTILLED:
            if isinstance(self.model.model, NeuralPart):
                raise InputError(f"no images can be distilled for {self.model.reference}, a detector; give --data")
            return self._distilled()
        data = self._boxes() if self._of_boxes else _data(self.model, options.data, *self._draw)
        data = prepared(data, self.model.model)
        for note in data.notes:
            self.console.note(note)
        return data

    @property
    def _draw(self) -> tuple[int, int | None, int]:
        return self.options.samples, self.options.val_samples or None, self.options.seed

    @property
    def _of_boxes(self) -> bool:
        """Whether the data is a folder of images for a detector."""
        return self.options.task == DETECTION and Path(self.options.data or "").is_dir()

    def _boxes(self) -> DataSource:
        options, model = self.options, self.model
        calib_samples, val_samples, seed = self._draw
        return load_detection(
            Path(options.data or ""),
            BoxOptions(None if options.annotations is None else Path(options.annotations), options.fit),  # type: ignore[arg-type]
            input_size=model.input_size,
            given=options.input_size is not None,
            normalization=model.normalization,
            any_size=isinstance(model.model, NeuralPart),
            calib_samples=calib_samples,
            val_samples=val_samples,
            seed=seed,
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
        """The calibration samples, as the network takes them."""
        return self.data.calib.samples

    @cached_property
    def validation(self) -> Split:
        """The samples to measure on. Raises InputError where there are none, or their labels are of other classes."""
        if self.data.val is None:
            raise InputError("measuring needs more samples than are calibrated on; give some, or a val/ folder")
        if self.data.classes is not None:
            outputs = list(self.network.outputs_of(*self.calibration[:1].to(self.network.device).leaves).values())
            if len(outputs) == 1 and outputs[0].dim() == 2:
                self.data.classes.check(max(2, outputs[0].shape[1]))  # one output is one decision
        return self.data.val

    @cached_property
    def task(self) -> Task:
        """What the network is for."""
        if self.given is not None:
            return self.given.task
        options = self.options
        if options.task != DETECTION:
            return load_task(options.task)
        if isinstance(self.model.model, NeuralPart) and options.decode is None:
            self.model.model.select(*self.thresholds)
            return torchvision_task(self.model.model)
        return load_detection_task(options.decode, Suppression(*self.thresholds))

    @property
    def thresholds(self) -> tuple[float, float]:
        """The score above which a detection counts, and the overlap above which it is suppressed: what was asked for,
        else the detector's own, else those of the literature."""
        options, model = self.options, self.model.model
        own = model.thresholds if isinstance(model, NeuralPart) and options.decode is None else (CONFIDENCE, OVERLAP)
        asked = (options.confidence, options.nms)
        confidence, overlap = (a if b is None else b for a, b in zip(own, asked, strict=True))
        return confidence, overlap

    @cached_property
    def likelihood(self) -> Likelihood:
        """What the outputs mean, by the task, from the graph and the float outputs on calibration samples.

        Raises InputError where these are not what the task expects, or NaN or infinite.
        """
        outputs = example_outputs(self.network, self.data.calib)
        found = self.task.likelihood_of(outputs, endings(self.network))
        require_finite(found, outputs)
        if is_random(self.network, self.data.calib):
            self.console.note(
                "the network is random in eval mode (the same input gives different outputs): no two runs give the "
                "same, and figures are those of single draws; is there a dropout that is always on?"
            )
        return found

    @property
    def within_memory(self) -> Settings:
        """The settings with the memory that may be used, which is in no key."""
        return replace(self.settings, memory_bytes=self.options.cache_memory_bytes)

    def require_memory(self, *stages: Stage, terms: int = 0, workers: int = 0) -> None:
        """Says what the `stages` are expected to need, once for each, at so many `terms` of sensitivity, and by so many
        `workers` where there are some. Raises InputError where that is not there."""
        if self._asked.issuperset(stages):
            return
        self._asked.update(stages)
        calib = self.data.calib
        converted = calib.normalization is None or "calibration" in self.__dict__
        work = Work(len(calib), 0 if converted else len(calib), terms, self.data.val is not None, self.within_memory)
        need = expected(self.network, work, stages, rss_bytes())
        self.console.note(f"memory: {need}")
        short = require_room(need, rooms(), workers)
        if short is not None:
            self.console.note(short)

    def prepared(self, config: BitConfig) -> Prepared:
        """The network prepared for reconstruction at the bits of inputs of `config`; the last one is kept, so that
        points of a front share it."""
        inputs = input_bits(config)
        if self._prepared is None or self._prepared[0] != inputs:
            made = prepare(self.network, self.calibration, config, self.settings, self.likelihood)
            self._prepared = inputs, made
        return self._prepared[1]

    @cached_property
    def judge(self) -> Judge:
        """What measures networks on the validation samples; doubts about the float network are noted."""
        made = Judge.of(self.network, self.task, self.likelihood, self.validation)
        for doubt in made.doubts:
            self.console.note(doubt)
        return made
