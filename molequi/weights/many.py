"""Train many small networks at once, as one batch: the data of weight spaces."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from molequi.errors import DataError, DivergedError
from molequi.util.progress import ProgressBar
from molequi.weights.architecture import Architecture
from molequi.weights.networks import Networks, check_finite

LossOfEach = Callable[[Networks, int], Float[Tensor, "B"]]


def train_many(
    networks: Networks,
    loss: LossOfEach,
    *,
    steps: int | Sequence[int] | Tensor = 300,
    lr: float | Tensor = 1e-2,
    decay: bool = True,
    progress: bool = False,
) -> Networks:
    """Train all networks of a batch with Adam, each with its own learning rate and number of steps.

    All take one step together, so that a thousand networks cost little more than the matrix products of
    their layers. They do not influence each other: the loss is a sum over networks, and Adam works weight by
    weight.

    Parameters
    ----------
    networks : Networks
        The networks at the start. They are not changed.
    loss : callable
        From the networks and the number of the step to the loss of each, shape (B,).
    steps : int, or sequence of int of length B
        Steps of each network; 0 leaves one as it is.
    lr : float, or Tensor of shape (B,)
        Learning rate of each network.
    decay : bool
        Whether the learning rate falls to zero as a half period of a cosine, over the steps of each network.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    Networks
        The trained networks.

    Raises
    ------
    DataError
        If the loss is not one number for each network, and for steps or learning rates that are not one or
        one for each.
    DivergedError
        At the end, if the loss of a network was not finite in a step or after the last one. Such a network
        stays as it was then; the others are trained, ``error.networks[error.others]``.

    Examples
    --------
    >>> torch.manual_seed(0) and None
    >>> x = torch.linspace(-1, 1, 20)[:, None]
    >>> start = Networks.random(Architecture((1, 16, 1), "sine"), 2)
    >>> lines = train_many(start, lambda nets, step: (nets(x) - x).square().mean((1, 2)))
    >>> bool(((lines(x) - x).abs() < 0.05).all())
    True
    """
    count, like = len(networks), networks.weights[0]
    until = _of_each("steps", torch.as_tensor(steps, device=like.device), count)
    if until.is_floating_point() or bool((until < 0).any()):
        raise DataError(f"steps={steps}: wanted whole numbers, at least 0")
    rates = _of_each("lr", torch.as_tensor(lr, dtype=like.dtype, device=like.device), count)
    last = max(until.tolist(), default=0)
    failed: dict[int, int] = {}  # after how many steps
    values = [v.detach().clone().requires_grad_() for v in (*networks.weights, *networks.biases)]
    first = [torch.zeros_like(v) for v in values]
    second = [torch.zeros_like(v) for v in values]
    b1, b2, half = 0.9, 0.999, len(networks.weights)
    with ProgressBar("networks", last, show=progress) as bar:
        for step in range(last + 1 if last else 0):
            now = Networks(networks.architecture, tuple(values[:half]), tuple(values[half:]))
            each = loss(now, min(step, last - 1))
            if tuple(each.shape) != (count,):
                raise DataError(
                    f"the loss has the shape {tuple(each.shape)}; wanted ({count},), one of each network"
                )
            for k in (~each.isfinite()).nonzero().flatten().tolist():
                failed.setdefault(k, step)
            if step == last or len(failed) == count:
                break
            moving = step < until
            moving[list(failed)] = False
            # a loss of forces does not depend on the last bias
            grads = torch.autograd.grad(each.sum(), values, allow_unused=True, materialize_grads=True)
            done = step / until.clamp(min=1)
            size = rates * (0.5 * (1 + torch.cos(torch.pi * done)) if decay else 1.0)
            with torch.no_grad():
                for value, grad, m, v in zip(values, grads, first, second):
                    m.lerp_(grad, 1 - b1)
                    v.lerp_(grad.square(), 1 - b2)
                    move = (m / (1 - b1 ** (step + 1))) / ((v / (1 - b2 ** (step + 1))).sqrt() + 1e-8)
                    each_of = (-1, *[1] * (value.ndim - 1))
                    value.sub_(torch.where(moving.view(each_of), move * size.view(each_of), 0.0))
            bar.advance()
    values = [v.detach() for v in values]
    trained = Networks(networks.architecture, tuple(values[:half]), tuple(values[half:]))
    if failed:
        which, step = next(iter(failed.items()))
        raise DivergedError(
            f"the loss of {len(failed)} of {count} networks is not finite, first that of network {which} "
            f"after {step} steps (learning rate {float(rates[which]):g}); take a smaller learning rate, or "
            "the others: error.networks[error.others]",
            trained,
            tuple(sorted(failed)),
        )
    return trained


def _of_each(name: str, values: Tensor, count: int) -> Tensor:
    if tuple(values.shape) not in ((), (1,), (count,)):
        raise DataError(
            f"{name} of shape {tuple(values.shape)}; wanted one number, or one for each of the {count} "
            "networks"
        )
    return values.expand(count)


def fit_fields(
    x: Float[Tensor, "n into"],
    y: Float[Tensor, "B n out"],
    *,
    hidden: Sequence[int] = (32, 32),
    activation: str = "sine",
    steps: int = 300,
    lr: float = 1e-2,
    seed: int = 0,
    progress: bool = False,
) -> Networks:
    """Implicit neural representations of many signals: one network for each, f(x) ≈ y, from its own start.

    Parameters
    ----------
    x : Tensor, shape (n, in)
        Coordinates, between -1 and 1, such as those of `grid`.
    y : Tensor, shape (B, n, out)
        The value of each signal there, such as a gray value.
    hidden : sequence of int
        Neurons of each hidden layer.
    activation : str
        A key of `ACTIVATIONS`; with "sine" the networks are SIRENs (arXiv 2006.09661).
    steps : int
        Steps of Adam.
    lr : float
        Learning rate.
    seed : int
        Seed of the random starts.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    Networks
        One for each signal.

    Raises
    ------
    DataError
        If the shapes do not fit together, and for values that are no finite real numbers.
    DivergedError
        As `train_many`.

    Examples
    --------
    >>> pictures = torch.rand(3, 16)
    >>> fit_fields(grid(4), pictures[..., None], hidden=[16], steps=10)
    3 networks 2-16-1, sine
    """
    if x.ndim != 2 or y.ndim != 3 or y.shape[1] != x.shape[0]:
        raise DataError(
            f"x has the shape {tuple(x.shape)} and y {tuple(y.shape)}; wanted coordinates (n, in) and "
            "values (B, n, out)"
        )
    if not y.is_floating_point():
        raise DataError(f"y is {y.dtype}; wanted real values of order one, for pictures y / 127.5 - 1")
    check_finite("signal", y)
    architecture = Architecture((x.shape[1], *hidden, y.shape[2]), activation)
    start = Networks.random(
        architecture, len(y), generator=torch.Generator().manual_seed(seed), dtype=y.dtype, device=y.device
    )
    x = x.to(y)

    def loss(networks: Networks, step: int) -> Tensor:
        return (networks(x) - y).square().mean((1, 2))

    return train_many(start, loss, steps=steps, lr=lr, progress=progress)


def grid(*sizes: int) -> Float[Tensor, "n D"]:
    """Centers of the pixels of a picture between -1 and 1, row by row.

    Parameters
    ----------
    *sizes : int
        Pixels along each direction; one number for a square picture.

    Examples
    --------
    >>> grid(2)
    tensor([[-0.5000, -0.5000],
            [-0.5000,  0.5000],
            [ 0.5000, -0.5000],
            [ 0.5000,  0.5000]])
    """
    lines = [(2 * torch.arange(n) + 1) / n - 1 for n in (sizes if len(sizes) > 1 else 2 * sizes)]
    return torch.cartesian_prod(*lines).to(torch.float32)
