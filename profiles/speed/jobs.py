"""From a case to what is called and timed: the layers built, on one input, in one direction."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from profiles.errors import Refusal, Unavailable, first_line, with_article
from profiles.speed.cases import COPY, Case, reference
from profiles.speed.clocks import Job
from profiles.subject import Setup, Subject

if TYPE_CHECKING:
    from torch import Tensor, nn


def jobs(what: Case, rank: int = 0) -> list[Job]:
    """Build everything that ``what`` names, run each once, and return the jobs: stone, references, copy.

    All share one input, on every ``rank`` another of the same shape. Raises `Refusal` when a layer refuses it or has no
    gradient to give, `Unavailable` when torch.compile fails. What was compiled before, by anybody, is forgotten with
    ``compile``: each case is compiled for its own shapes.
    """
    import torch

    if what.compile:
        torch.compiler.reset()  # else for other shapes, and after some more no longer at all, which torch does not say
    learns = what.subject.setup.train or what.direction != "forward"
    x = what.subject.input(requires_grad=learns, seed=1 + 3 * rank)  # parameters and gradient take seeds 0 and 2
    made = []
    for name, found in {what.label: what.subject, **what.references}.items():
        layer = _Layer(found or reference(what.subject, name), x, what.compile)
        made.append(layer.job(name, what.direction))
    source, sink = x.detach(), torch.empty_like(x.detach())
    made.append(Job(COPY, lambda: sink.copy_(source)))
    return [_graphed(job, what.subject.setup.device) for job in made] if what.graph else made


def _graphed(job: Job, device: str) -> Job:
    """Return the job of replaying ``job`` from a CUDA graph; raises `Refusal` for what cannot be captured."""
    import torch

    side, graph = torch.cuda.Stream(device), torch.cuda.CUDAGraph()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(3):  # what happens once, such as choosing an algorithm, may not happen in the capture
            job.run()
    torch.cuda.current_stream(device).wait_stream(side)
    try:
        with torch.cuda.graph(graph):
            job.run()
    except RuntimeError as error:
        raise Refusal(f"{job.name} cannot be captured in a CUDA graph: {first_line(error)}") from error
    return replace(job, run=graph.replay)


class _Layer:
    """A built layer, its input, and the upstream gradient of its output."""

    def __init__(self, what: Subject, x: Tensor, compile: bool) -> None:
        import torch

        self.what, self.x = what, x
        self.module: Callable[[Tensor], Any] = what.build().requires_grad_(x.requires_grad)
        self.parameters = [p for p in _parameters(self.module) if p.requires_grad]
        self.y: Tensor | None = what.run(self.module, x)
        self.has_gradient = self.y.requires_grad
        self.gradient = torch.empty_like(self.y, dtype=self.y.dtype if self.has_gradient else torch.float32)
        self.gradient.normal_(generator=_generator(what.setup))
        self.y = None
        self.is_compiled = compile
        if compile:
            self.module = torch.compile(self.module)

    def job(self, name: str, direction: str) -> Job:
        """Return the job of ``direction``, which ran twice: the first call compiles, where that is asked for."""
        if direction == "forward":
            return Job(name, self.inference, compile_seconds=self._compile(self.inference))
        if not self.what.has_backward:
            raise Refusal(f"{self.what.name} has no {direction}: {with_article(self.what.role)} is not differentiated")
        if not self.has_gradient:
            raise Refusal(f"{self.what.name} has no {direction}: its output depends on its input by no gradient")
        seconds = self._compile(self.both)
        with self.what.refusing("fails in its backward"):
            self.both()
            self.both()  # a layer that keeps a graph from its making fails the second time
        if direction == "backward":
            return Job(name, self.backward, self.forward, seconds)
        return Job(name, self.both, compile_seconds=seconds)

    def _compile(self, run: Callable[[], object]) -> float | None:
        """Return what the first call of ``run`` takes beyond the second, in seconds: compilation; None without it."""
        if not self.is_compiled:
            return None
        try:
            first, second = _seconds(run), _seconds(run)
        except Exception as error:  # whatever the compiler raises
            why = first_line(error)
            remedy = "; install one, or let CXX name it, or leave --compile out" if "InvalidCxxCompiler" in why else ""
            raise Unavailable(f"torch.compile fails on {self.what.name}: {why}{remedy}") from error
        return max(0.0, first - second)

    def inference(self) -> Any:
        """Return the output, of a graph or of none."""
        return self.module(self.x)

    def forward(self) -> None:
        """Make a fresh graph; the old one is dropped first."""
        self.y = None
        self.y = _first(self.module(self.x))

    def backward(self) -> tuple[Tensor | None, ...]:
        """Return the gradients of input and parameters, consuming the graph of `forward`."""
        import torch

        assert self.y is not None
        inputs = [self.x, *self.parameters]
        return torch.autograd.grad(self.y, inputs, self.gradient, allow_unused=True)

    def both(self) -> tuple[Tensor | None, ...]:
        """Return the gradients of a fresh graph, of which nothing is left: calls begin alike, in memory too."""
        self.forward()
        found = self.backward()
        self.y = None
        return found


def _parameters(module: Any) -> list[nn.Parameter]:
    return list(module.parameters())


def _first(y: Any) -> Any:
    return y[0] if isinstance(y, (tuple, list)) else y


def _generator(setup: Setup) -> Any:
    import torch

    return torch.Generator(setup.device).manual_seed(setup.seed + 2)


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
