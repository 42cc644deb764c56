"""A target made ready to run: built on an input of a shape, dtype, device and memory format, with a seed.

The one place that knows how each kind of stone is constructed and called.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from layers import formula
from layers.card import Card, OptionError, OptionValue
from layers.catalog import Stone
from profiles.errors import Refusal, Unavailable, first_line, is_out_of_memory
from profiles.target import Target, card_of, is_optimizer, remedy, takes_tensor

if TYPE_CHECKING:
    from torch import Tensor, nn

DTYPES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}
PIXELS = {"uint8": 1}  # what augmentations work on, whatever the setup says
MEMORY_FORMATS = ("contiguous", "channels_last")
IMAGES = (64, 3, 32, 32)  # a batch for augmentations
MAX_ELEMENTS = 2**62
MOST_TENSORS = 10_000
_REFUSALS = (ValueError, IndexError, TypeError, RuntimeError, NotImplementedError)  # of an input, in torch and here


@dataclass(frozen=True)
class Setup:
    """Under what circumstances something runs. ``shape`` is (N, C, *positions), or that of a weight (O, …) for what
    works on weights, of which an optimizer may have several ``tensors``; ``train`` the mode of a layer.
    """

    shape: tuple[int, ...] = (8, 64, 32, 32)
    dtype: str = "float32"
    device: str = "cpu"
    memory_format: str = "contiguous"
    train: bool = True
    seed: int = 0
    tensors: int = 1

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return (DTYPES | PIXELS)[self.dtype]

    @property
    def circumstances(self) -> dict[str, Any]:
        """What formulas on cards may depend on beside the shape and options: train, itemsize, nhwc."""
        return {"train": self.train, "itemsize": self.itemsize, "nhwc": self.memory_format == "channels_last"}

    @property
    def elements(self) -> int:
        """Elements of the input, of all tensors together, as a Python integer of any size."""
        return self.tensors * math.prod(self.shape)


@dataclass(frozen=True)
class Subject:
    """A target with checked options and a setup. Made by `subject`; torch is imported when it is built."""

    target: Target
    options: Mapping[str, OptionValue]
    setup: Setup = field(default_factory=Setup)

    @property
    def name(self) -> str:
        """The target's name as the user wrote it."""
        return self.target.name

    @property
    def card(self) -> Card | None:
        """The stone's card, or None for a class outside the catalogue."""
        return card_of(self.target)

    @property
    def on_weight(self) -> bool:
        """Whether the target works on one weight (penalty, projection, initializer, optimizer)."""
        return self.card.works_on_weights if self.card is not None else self.role == "optimizer"

    @property
    def role(self) -> str:
        """What it is: the role of its card; a class is an optimizer or a layer."""
        if isinstance(self.target, Stone):
            return self.target.card.role
        return "optimizer" if is_optimizer(self.target) else "layer"

    @property
    def on_images(self) -> bool:
        """Whether the target works on images, batches of uint8 (augmentations)."""
        return self.role == "augmentation"

    @property
    def has_backward(self) -> bool:
        """Whether its result is differentiated: layers and penalties, what else works on a weight is not."""
        return self.role in ("layer", "penalty")

    @property
    def symbols(self) -> dict[str, Any]:
        """The symbols of the card's formulas under this setup; empty without a card."""
        if self.card is None:
            return {}
        setup = self.setup
        return self.card.symbols(setup.shape, self.options, **setup.circumstances)

    def build(self) -> nn.Module:
        """Construct the layer, or the adapter of what works on a weight, under the seed, in the setup's
        dtype, device and mode. Leaves the RNG as it was.
        """
        import torch

        setup = self.setup
        device, dtype = torch.device(setup.device), getattr(torch, setup.dtype)
        with torch.random.fork_rng(devices=_cuda(setup)):
            torch.manual_seed(setup.seed)
            if self.on_weight:
                from profiles.adapters import adapted

                with self.refusing(f"refuses a weight of {'x'.join(map(str, setup.shape))}", *_REFUSALS):
                    module = adapted(self.target, self.options, setup.shape, device, dtype, setup.tensors)
            elif isinstance(self.target, Stone) and self.on_images:
                module = self.target.load()(**self.options)
            elif isinstance(self.target, Stone):
                make = self.target.load()
                with self.refusing("cannot be built"):
                    module = make(setup.shape[1], **self.options, device=device, dtype=dtype)
            else:
                module = _construct(self.target.factory, self.name, self.options)
                with self.refusing("cannot be built"):
                    module = self._with_shapes(module.to(device, dtype if dtype.is_floating_point else None))
        trained: nn.Module = module.train(setup.train)
        return trained

    def _with_shapes(self, module: nn.Module) -> nn.Module:
        """Run a module that takes its shapes from its first input once."""
        import torch
        from torch.nn.parameter import is_lazy

        if any(is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers())):
            with torch.no_grad():
                self.run(module, self.input(requires_grad=False))
        return module

    def input(self, *, requires_grad: bool = True, seed: int = 1) -> Tensor:
        """Draw a standard normal input in the setup's shape, dtype, device and memory format; images are uniform."""
        import torch

        setup = self.setup
        shape = setup.shape if setup.tensors == 1 else (setup.tensors, *setup.shape)
        generator = torch.Generator(setup.device).manual_seed(setup.seed + seed)
        if setup.dtype in PIXELS:
            x = torch.randint(0, 256, shape, generator=generator, device=setup.device, dtype=torch.uint8)
        else:
            x = torch.randn(shape, generator=generator, device=setup.device, dtype=torch.float32)
            x = x.to(getattr(torch, setup.dtype))
        if setup.memory_format == "channels_last":
            x = x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)
        return x.requires_grad_(requires_grad and x.is_floating_point())

    def run(self, module: Callable[[Tensor], Any], x: Tensor) -> Tensor:
        """Call ``module`` on ``x`` and return its output (the first of several tensors); refusals become `Refusal`."""
        import torch

        from profiles.outputs import first_tensor

        with self.refusing(f"refuses an input of {'x'.join(map(str, self.setup.shape))}", *_REFUSALS):
            y = module(x)
        y = first_tensor(y, self.name)
        if y.is_complex() or y.is_nested or y.layout != torch.strided or y.device != x.device:
            raise Refusal(f"{self.name} returned a tensor that is not real and dense, on the device of its input")
        return y

    @contextmanager
    def refusing(self, what: str, *usual: type[Exception]) -> Iterator[None]:
        """Turn an exception in the block into a `Refusal` that says ``what``: of our stones only the ``usual`` ones.

        What the machine lacks (memory, files, modules) passes unchanged.
        """
        try:
            yield
        except (Refusal, OSError, ImportError):
            raise
        except Exception as error:
            is_ours = isinstance(self.target, Stone) and self.target.origin is None
            if is_out_of_memory(error) or (is_ours and not isinstance(error, usual)):
                raise
            kind = "" if isinstance(error, _REFUSALS) else f"{type(error).__name__}: "
            raise Refusal(f"{self.name} {what}: {kind}{first_line(error)}") from error


def subject(target: Target, options: Mapping[str, OptionValue], setup: Setup) -> Subject:
    """Check ``options`` against ``target`` and ``setup`` (without torch for a stone) and return the subject."""
    check_setup(setup, card_of(target), target.name)
    if isinstance(target, Stone):
        if target.card.role == "augmentation":
            setup = replace(setup, dtype="uint8")
        known = target.card.sizes(setup.shape, **setup.circumstances)
        return Subject(target, target.card.check(known, options), setup)
    if is_optimizer(target):
        raise Refusal(f"{target.name} is an optimizer, not a layer; those that can be measured are in `stones list`")
    return Subject(target, target.check(setup.shape[1], options), setup)


def default_shape(target: Target, layer: tuple[int, ...], weight: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of an input that nobody gave: ``weight`` for what works on weights, ``layer`` for the others.

    Of as many axes as the card admits.
    """
    card = card_of(target)
    if card is not None and card.role == "augmentation":
        return IMAGES
    shape = weight if card is not None and card.works_on_weights else layer
    return shape if card is None or len(shape) in card.ranks else shape[: max(card.ranks)]


def check_setup(setup: Setup, card: Card | None = None, name: str = "") -> None:
    """Refuse an impossible setup: rank, sizes, memory format; with ``card`` also what the stone ``name`` never admits.

    Devices and memory are checked by `check_environment`.
    """
    shape, on_weight = "x".join(map(str, setup.shape)), card is not None and card.works_on_weights
    ranks = card.ranks if card is not None else (2, 3, 4, 5)
    what, such = ("O x …, a weight", "64x64x3x3") if on_weight else ("N x C x positions", "8x64x32x32")
    if ranks == (2, 3, 4, 5) and len(setup.shape) not in ranks:
        raise Refusal(f"--input {shape}: 2 to 5 sizes are needed, {what}, such as {such}")
    if len(setup.shape) not in ranks:
        counts = " or ".join(map(str, ranks))
        raise Refusal(f"--input {shape}: {name} needs {counts} sizes, {what}, it has {len(setup.shape)}")
    if setup.tensors != 1 and (card is None or card.role != "optimizer"):
        raise Refusal(f"--tensors {setup.tensors} is for optimizers; {name} works on one tensor")
    if not 1 <= setup.tensors <= MOST_TENSORS:
        raise Refusal(f"--tensors {setup.tensors} is out of range: it must be ≥ 1 and ≤ {MOST_TENSORS}")
    if setup.tensors != 1 and setup.memory_format != "contiguous":
        raise Refusal(f"--memory-format {setup.memory_format} is for one tensor, --tensors {setup.tensors} are given")
    if on_weight and not setup.train:
        raise Refusal(f"--eval is for layers; {name} works on a weight, which has no mode")
    on_images = card is not None and card.role == "augmentation"
    if on_images and (not setup.train or setup.dtype not in ("float32", "uint8")):
        given = f"--dtype {setup.dtype}" if setup.train else "--eval"
        raise Refusal(f"{given} is for layers; {name} works on uint8 images, in training and evaluation alike")
    if on_weight and setup.elements == 0:
        raise Refusal(f"--input {shape}: a weight needs at least 1 element")
    if not on_weight and setup.shape[1] < 1:
        raise Refusal(f"--input {shape}: at least 1 channel is needed")
    if setup.elements > MAX_ELEMENTS:
        raise Refusal(f"--input {shape}: {setup.elements} elements are more than any tensor can hold")
    if setup.memory_format == "channels_last" and len(setup.shape) < 4:
        raise Refusal(f"--memory-format channels_last needs 4 or 5 sizes, --input {shape} has {len(setup.shape)}")


def check_environment(what: Subject, tensors: int = 6) -> None:
    """Raise `Unavailable` when the device is absent or ``tensors`` inputs do not fit the available memory.

    Instead of two inputs count the bytes of input, parameters and output where the card says that they are more.
    """
    from profiles.machine import Machine

    setup, available = what.setup, Machine().available
    moved = int(formula.evaluate(what.card.traffic.forward, what.symbols)) if what.card is not None else 0
    needed = max(setup.elements * max(4, setup.itemsize), moved // 2) * tensors
    if available is not None and needed > available:
        shape = "x".join(map(str, setup.shape))
        raise Unavailable(
            f"--input {shape}: {what.name} needs about {needed / 2**30:,.1f} GiB to run, "
            f"{available / 2**30:,.1f} GiB are available; give smaller sizes"
        )
    if setup.device.startswith("cuda"):
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = int(setup.device.partition(":")[2] or 0)
        if index >= count:
            raise Unavailable(f"--device {setup.device}: this machine has {count or 'no'} CUDA device(s)")


def _construct(factory: Any, name: str, options: Mapping[str, OptionValue]) -> nn.Module:
    from torch import nn

    if takes_tensor(factory):
        from profiles.adapters import on_tensor

        return on_tensor(factory, options)
    try:
        module = factory(**options)
    except OptionError:
        raise
    except Exception as error:
        given = ", ".join(f"{key}={value!r}" for key, value in options.items())
        raise Refusal(f"{name}({given}) cannot be built: {first_line(error)}{remedy(factory)}") from error
    if not isinstance(module, nn.Module):
        raise Refusal(f"{name} made a {type(module).__name__}, not a torch.nn.Module")
    return module


def _cuda(setup: Setup) -> Iterable[int]:
    return [int(setup.device.partition(":")[2] or 0)] if setup.device.startswith("cuda") else []
