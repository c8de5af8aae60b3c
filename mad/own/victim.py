"""A victim whose network is given: a file, a function or a service; or one that is trained on the user's own data."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import nn

from mad import weights
from mad.datasets import Split
from mad.datasets.checked import say
from mad.datasets.content import checksum_of
from mad.datasets.content import place as path_of
from mad.errors import MadError, check_choice
from mad.own import programs
from mad.own.answering import ANSWERS, Answering, check_logits
from mad.own.examine import examine, repeated, warn_of_objects
from mad.own.normalized import layer, normalized
from mad.own.service import Service
from mad.storage.fingerprint import ADDED, describe
from mad.training import logits_of, place
from mad.victim import Architecture, Victim

T = TypeVar("T")


@dataclass(frozen=True)
class Own(Victim):
    """A victim of the user's own. Give one of ``weights``, ``function`` and ``url``; with none it is trained.

    The knockoff and every surrogate start untrained all the same. ``architecture`` is the network that the weights
    are of; for a program, a function or a service it is only what knockoffs and surrogates are by default.

    Args:
        weights: a file: weights of ``architecture`` (safetensors, or a state dict of ``torch.save``), or a program
            (TorchScript, ``torch.export``, ONNX). Its content is part of the fingerprint, its path is not.
        function: a function, a network in eval mode, or the path of one such as ``my_module.predict``: images, float32
            (B, C, H, W), to answers, a tensor or an array.
        url: a service's address, as ``service`` takes it.
        service: makes the service from ``url`` and ``answers``; None for ``mad.own.service.Service`` as it is.
        answers: ``logits``, ``posteriors`` or ``labels``; None for logits of a network, posteriors of anything else.
        normalize: how images in [0, 1] are normalized before the network, function or service; see
            ``mad.own.normalized``. None for what the architecture does itself, else nothing.
        initial_weights: weights that a training starts from; see ``knockoff.initial_weights``.
        checksums: computed, and not to be given: what the files hold.
    """

    weights: str | None = field(default=None, compare=False)
    function: Any = field(default=None, metadata=ADDED)
    url: str | None = field(default=None, compare=False)
    service: Callable[..., Any] | None = field(default=None, metadata=ADDED)
    answers: str | None = field(default=None, metadata=ADDED)
    normalize: Any = field(default=None, metadata=ADDED)
    initial_weights: str | None = field(default=None, compare=False)
    checksums: tuple[str, ...] = field(default=(), metadata=ADDED)
    _answers: str = field(default="logits", init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if [self.weights, self.function, self.url] != [None] * 3 and getattr(self.dataset, "test_share", 0) is None:
            data: Any = self.dataset
            whole = replace(data, test_share=1)  # no image is needed for training, but some for validation
            if not self.validation or whole.count(testing=False):
                object.__setattr__(self, "dataset", whole)
        super().__post_init__()
        if [self.weights, self.function, self.url].count(None) < 2:
            raise MadError("victim=own takes one of victim.weights, victim.function and victim.url")
        if isinstance(self.function, str):
            object.__setattr__(self, "function", named(self.function))
        if self.function is not None and not callable(self.function):
            raise MadError(f"victim.function must be a function or its path, my_module.predict, got {self.function!r}")
        self._check_named()
        object.__setattr__(self, "service", None if self.url is None else self._service())
        layer(self.normalize, self.dataset.shape[0])
        network = isinstance(self.function, nn.Module)
        if network and self.function.training:
            raise MadError("victim.function is a network in train mode: call its eval()")
        usual = "logits" if self.weights is not None or network else "posteriors"
        check_choice("victim.answers", self.answers or usual, ANSWERS)
        object.__setattr__(self, "_answers", self.answers or usual)  # replace() may change what is usual
        if self.initial_weights is not None and self.given is not None:
            raise MadError("victim.initial_weights is where a training starts; a given network is not trained")
        files = [file for file in (self.weights, self.initial_weights) if file is not None]
        object.__setattr__(self, "checksums", tuple(map(self._checksum, files)))

    def _check_named(self) -> None:
        """Raise MadError if nothing can name the state of ``function``, such as that of an object of a library."""
        try:
            describe(None if isinstance(self.function, nn.Module) else self.function)
        except MadError as error:
            owner = getattr(self.function, "__self__", self.function)
            if isinstance(owner, (FunctionType, partial)):
                raise MadError(f"victim.function: {error}") from error
            what = f"{'' if owner is self.function else 'a method of '}{type(owner).__name__}"
            advice = "wrap it in a function at the top of a module"
            raise MadError(f"victim.function is {what}, whose state cannot be named: {advice}") from error
        warn_of_objects(self.function, self.who)

    def _service(self) -> Any:
        """Return the service at ``url``, also after ``dataclasses.replace``, when it is made already."""
        given: Any = self.service or Service
        make = partial(replace, given) if isinstance(given, Service) else given
        return make(url=self.url, answers=self.answers or "posteriors")

    @property
    def given(self) -> Any:
        """What identifies the given network: the checksum of its file, its function or its service; else None."""
        if self.weights is None and self.function is None and self.url is None:
            return None
        what = [describe(self.function), describe(self.service), list(self.checksums)]
        return [*what, self._answers, describe(self.normalize)]

    @cached_property
    def form(self) -> str | None:
        """``torchscript``, ``export``, ``onnx``, ``function`` or ``service``; None for weights of the architecture."""
        if self.function is not None:
            return "function"
        if self.url is not None:
            return "service"
        return None if self.weights is None else programs.kind(self.weights, self._content(self.weights))

    @property
    def network_name(self) -> str:
        """The name of the architecture, or the ``form`` of a network without one."""
        return self.form or super().network_name

    @property
    def who(self) -> str:
        """The victim's network as errors name it."""
        if self.function is not None:
            name = getattr(self.function, "__qualname__", type(self.function).__name__)
            return f"victim.function={getattr(self.function, '__module__', '')}.{name}"
        return f"victim.url={self.url}" if self.url is not None else f"victim.weights={self.weights}"

    def untrained(self, architecture: Architecture | None = None, *, seed: int, purpose: str) -> nn.Module:
        """Return a randomly initialized network; for the victim's own training, one with the initial weights."""
        model = super().untrained(architecture, seed=seed, purpose=purpose)
        if purpose != "victim":
            return model
        model = self._normalized(model)
        if self.initial_weights is not None:
            told = self._of_file(self.initial_weights, lambda content: weights.load_into(model, content))
            say(f"victim.initial_weights={self.initial_weights}: {told}")
        return model

    def fit(self, model: nn.Module, device: torch.device) -> None:
        """Train a network in place; a given one is refused.

        Raises:
            MadError: if the victim is given: what must train it anew cannot be had.
        """
        self.check_trainable("its training")
        super().fit(model, device)

    def check_trainable(self, who: str) -> None:
        """Raise MadError for a given victim; ``who`` wanted to train it."""
        if self.given is not None:
            raise MadError(f"{who} trains victim {self.name} anew, and {self.who} is given as it is: take another")

    def check_open(self, who: str) -> None:
        """Raise MadError if the victim's weights cannot be had; ``who`` needs them."""
        if self.form is not None:
            raise MadError(f"{who} needs the weights of victim {self.name}; {self.who} only answers: take another")

    def rebuilt_by(self, architecture: Architecture) -> Architecture:
        """Return what builds the network that is served, with its normalization and its form of answers.

        Raises:
            MadError: if it only answers.
        """
        if self.form is not None:
            what = f"{self.who} has no weights of an architecture ({self.form}), so there is nothing to write"
            raise MadError(f"victim {self.name} cannot be exported: {what}")
        answers = "logits" if self.given is None else self._answers
        if self.normalize is None and answers == "logits":
            return architecture
        return partial(rebuilt, architecture=architecture, normalize=self.normalize, answers=answers)

    def ready(self, device: torch.device, outputs: Path | None = None) -> nn.Module:
        """Return the victim's network, in eval mode on ``device``: opened, or trained if none is given.

        Raises:
            MadError: if it cannot be opened, does not fit the images and classes, or cannot be reached.
        """
        if self.given is None:
            return super().ready(device, outputs)
        network = place(self._opened(device, outputs).eval(), device)
        # A network in Python may be trained on by its owner; no gradient of it is ever taken here.
        return network if self.function is not None else network.requires_grad_(False)

    def _opened(self, device: torch.device, outputs: Path | None) -> nn.Module:
        shape, classes = self.dataset.shape, self.dataset.classes
        if self.function is not None:
            return self._normalized(self._answering(self.function))
        if self.service is not None:
            service: Any = self.service
            connection = service.connect(shape, classes, None if outputs is None else outputs / "answers")
            if self.normalize is not None and connection.wire.datatype == "UINT8":
                raise MadError(f"{self.who} takes bytes, no normalized images: leave victim.normalize out")
            return self._normalized(Answering(connection, "posteriors", classes, self.who))
        assert self.weights is not None
        if self.form is not None:
            form, file = self.form, path_of(self.weights)
            network = self._of_file(self.weights, lambda content: programs.opened(form, file, content, shape, device))
            return self._normalized(self._answering(network))
        model = self._normalized(super().untrained(seed=self.seed, purpose="victim"))
        say(f"{self.who}: {self._of_file(self.weights, lambda content: self._loaded(model, content))}")
        return model if self._answers == "logits" else self._answering(model)

    def _loaded(self, model: nn.Module, content: bytes) -> str:
        """Load all weights into the architecture; return what was loaded. An error says what it was built for."""
        try:
            return weights.load_into(model, content, whole=True)
        except MadError as error:
            shape, classes = tuple(self.dataset.shape), self.dataset.classes
            built = f"{super().network_name} was built for the data's images of {shape} and {classes} classes"
            raise MadError(f"{error} ({built})") from error

    def _answering(self, answer: Any) -> Answering:
        return Answering(answer, self._answers, self.dataset.classes, self.who)

    def _normalized(self, network: nn.Module) -> nn.Module:
        return normalized(network, self.normalize, self.dataset.shape[0])

    def examine(self, network: nn.Module, test: Split, device: torch.device) -> None:
        """Print a given network's accuracy on the test split; warn of what looks like a mistake."""
        if self.given is None:
            return
        names = getattr(self.dataset, "names", None) or [str(k) for k in range(self.dataset.classes)]
        if self.form is None and self._answers == "logits":
            check_logits(logits_of(network, test.images, device), self.who)
        if self.url is None:  # a service may take money
            repeated(network, test, device, f"victim {self.name}")
        normalization = None if self.weights is None else f"victim.normalize={self.normalize}"
        examine(network, test, device, who=f"victim {self.name}", names=names, normalization=normalization)

    def _of_file(self, file: str, use: Callable[[bytes], Any]) -> Any:
        """Return what ``use`` makes of a file's content; a MadError names the file, also if it changed."""
        if self._checksum(file) not in self.checksums:
            raise self._error(file, "changed after the start: start again")
        try:
            return use(self._content(file))
        except MadError as error:
            raise self._error(file, str(error)) from error

    def _checksum(self, file: str) -> str:
        """Return the checksum of a file and of those beside it that belong to it, which are read once a process."""
        return self._read(file, lambda path: " ".join(map(checksum_of, [path, *programs.beside(path)])))

    def _content(self, file: str) -> bytes:
        """Return the bytes of a file."""
        return self._read(file, Path.read_bytes)

    def _read(self, file: str, how: Callable[[Path], T]) -> T:
        """Return what is read of a file; MadError if it, or one that belongs to it, cannot be read."""
        try:
            return how(path_of(file))
        except (OSError, ValueError, TypeError) as error:
            other = str(getattr(error, "filename", None) or file)
            why = f"{getattr(error, 'strerror', None) or error}{'' if other == file else f': {other}'}"
            raise self._error(file, f"cannot be read ({why})") from error

    def _error(self, file: str, what: str) -> MadError:
        return MadError(f"victim.{'weights' if file == self.weights else 'initial_weights'}={file} {what}")


def rebuilt(
    shape: tuple[int, int, int], classes: int, architecture: Architecture, normalize: Any, answers: str
) -> nn.Module:
    """Return a network of an architecture that normalizes, and answers in the form, as its owner said; for exports."""
    network = normalized(architecture(shape=shape, classes=classes), normalize, shape[0])
    return network if answers == "logits" else Answering(network, answers, classes, "the exported victim")


def named(path: str) -> Any:
    """Return the function of a path such as ``my_module.predict``; the module lies where the command is started.

    Raises:
        MadError: if there is none.
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except MadError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {weights.first_line(error)}"
        raise MadError(
            f"victim.function={path} cannot be imported ({why}): expected MODULE.FUNCTION, of a "
            "module that lies where the command is started"
        ) from error
