"""Networks run in lock-step: the forwards of all images pause together wherever a layer reads its input.

No network is traced. Each forward runs in a thread of its own and waits at every layer until all have arrived there;
then whoever drives the pass sees what the layer reads on all images at once, and may change the layer before it runs.
"""

import threading
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from bitsplit.errors import InputError
from bitsplit.layers.batch_norm import norms_by_mean
from bitsplit.layers.copies import copy_around_tensors
from bitsplit.layout import weighted_layers
from bitsplit.statistics.batches import pieces as pieces_of
from bitsplit.statistics.capture import LayerCall, NumberedCalls
from bitsplit.statistics.finite import check_output
from bitsplit.statistics.memory import LARGE, LARGEST, return_when_freed
from bitsplit.statistics.reads import LayerReads


def images_in_memory(networks: Sequence[nn.Module], batches: Iterable[Tensor], memory_gb: float) -> list[Tensor]:
    """Pieces of the batches, at least one and as many as may wait in all networks at once within `memory_gb`."""
    kept, used = [], 0.0
    for piece, _ in pieces_of(batches):
        if not kept:
            held = sum(_held_bytes(network, piece) for network in networks) / len(piece)
        used += len(piece) * held + piece.nbytes
        if kept and used > memory_gb * 1e9:
            break
        kept.append(piece)
    return kept


@torch.no_grad()
def _held_bytes(network: nn.Module, images: Tensor) -> int:
    """The most that the tensors of a forward of the images take at any time, but for what one operation needs."""
    held = _HeldTensors()
    with held:
        network(images.clone())
    return held.most


class _HeldTensors(TorchFunctionMode):
    """Knows after each function how many bytes the tensors take that were made in the forward and are still there."""

    def __init__(self):
        super().__init__()
        self._made: list[weakref.ref] = []
        self.most = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self._made += [weakref.ref(leaf) for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        alive = [tensor for made in self._made if (tensor := made()) is not None]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in alive}
        self.most = max(self.most, sum(storages.values()))
        self._made = [weakref.ref(tensor) for tensor in alive]
        return result


@dataclass(frozen=True)
class Stop:
    """One place at which all forwards wait: the `number`-th call in a forward of the module `name`.

    values[i][j] is what network i shows of piece j: the call of a weighted layer and the shortcut that will be added to
    its output (or None), or, where `norm` is set, the mean (C,) of what a batch-norm layer reads and the number of
    values of each channel; None where that forward has come to its end. `rewrite` changes the input that a layer's
    calls in network i go on with.
    """

    name: str
    number: int
    norm: bool
    values: list[list]
    _forwards: "list[list[_Forward]]"

    def rewrite(self, network: int, change: Callable[[Tensor], Tensor]) -> None:
        for forward in self._forwards[network]:
            forward.change = change


class Lockstep:
    """Iterates over the `Stop`s of forwards of `pieces` through each of `networks`, which share their modules' names.

    A context manager: leaving it, for whatever reason, ends all forwards that still wait. `lanes` forwards run at a
    time, each on one thread, so that the sums in them do not depend on how many there are.
    """

    def __init__(
        self, networks: Sequence[nn.Module], reads: dict[str, LayerReads], pieces: Sequence[Tensor], lanes: int
    ):
        self._calls = [_PausingCalls(network, reads) for network in networks]
        self._lanes, self._arrived = threading.Semaphore(lanes), threading.Semaphore(0)
        self._forwards = [
            [_Forward(network, images, calls, self._lanes, self._arrived) for images in pieces]
            for network, calls in zip(networks, self._calls, strict=True)
        ]

    def __enter__(self) -> "Lockstep":
        return_when_freed(LARGE)
        self._threads = torch.get_num_threads()
        for calls in self._calls:
            calls.watch()
        return self

    def __exit__(self, *exception) -> None:
        waiting = [forward for forward in self._every() if forward.is_alive()]
        for forward in waiting:
            forward.end()
        for forward in waiting:
            forward.join()
        for calls in self._calls:
            calls.unwatch()
        torch.set_num_threads(self._threads)
        return_when_freed(LARGEST)

    def __iter__(self) -> Iterator[Stop]:
        """Raises what a forward has raised, and InputError where forwards take different ways: some may leave out what
        others go through, a mask head without detections say, only where nothing comes behind it."""
        running = self._every()
        for forward in running:
            forward.start()
        while True:
            for _ in running:
                self._arrived.acquire()
            torch.set_num_threads(self._threads)  # which a forward has set to one, for threads that begin later
            if errors := [forward.error for forward in self._every() if forward.error]:
                raise errors[0]
            running = [forward for forward in running if forward.place]
            places = {forward.place for forward in running}
            if not places:
                return
            if len(places) > 1:
                ways = sorted(place[0] for place in places)
                raise InputError(
                    f"forwards take different ways through the network: some are at {', others at '.join(ways)}; "
                    "use a method in the parallel order, bitsplit_lattice say"
                )
            name, number, norm = places.pop()
            values = [[forward.value for forward in forwards] for forwards in self._forwards]
            yield Stop(name, number, norm, values, self._forwards)
            del values
            for forward in running:
                forward.go_on()

    def skipped(self, network: int) -> dict[str, str]:
        """`LayerCalls.skipped` of network i."""
        return self._calls[network].skipped

    def _every(self) -> "list[_Forward]":
        return [forward for forwards in self._forwards for forward in forwards]


class _Ended(BaseException):
    """Thrown through a forward that shall not go on; no `except Exception` in a network catches it."""


class _Forward(threading.Thread):
    """A network's forward of some images."""

    def __init__(
        self,
        network: nn.Module,
        images: Tensor,
        calls: "_PausingCalls",
        lanes: threading.Semaphore,
        arrived: threading.Semaphore,
    ):
        super().__init__(daemon=True, name="lockstep")
        self._network, self._images, self._calls = network, images, calls
        self._lanes, self._arrived, self._go = lanes, arrived, threading.Semaphore(0)
        self._ending = False
        self._passed: Counter[str] = Counter()
        self.place: tuple[str, int, bool] | None = None  # module, how many calls before, whether it is a batch-norm
        self.value: object = None
        self.change: Callable[[Tensor], Tensor] | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        torch.set_num_threads(1)
        try:
            with self._lanes, torch.no_grad():
                # Forwards that put tensors into attributes, for a decoder say, shall not read each other's.
                network = copy_around_tensors(self._network)
                images = self._images.clone()  # which a network may normalise in place
                with self._calls:
                    output = network(images)
                check_output(output)
        except _Ended:
            return
        except BaseException as error:
            self.error = error
        self.place = self.value = None
        self._arrived.release()

    def pause(self, name: str, norm: bool, value: object) -> Callable[[Tensor], Tensor] | None:
        """Waits until it shall go on; returns the change of the input to go on with."""
        self.place, self.value = (name, self._passed[name], norm), value
        self._passed[name] += 1
        del value
        self._lanes.release()
        self._arrived.release()
        self._go.acquire()
        self._lanes.acquire()
        if self._ending:
            raise _Ended
        change, self.change = self.change, None
        return change

    def go_on(self) -> None:
        self.value = None
        self._go.release()

    def end(self) -> None:
        self._ending = True
        self._go.release()


class _PausingCalls(NumberedCalls):
    """Lets a forward wait at each layer, with the shortcut that is added to its output, and at each batch-norm."""

    def __init__(self, network: nn.Module, reads: dict[str, LayerReads]):
        super().__init__(network, weighted_layers(network), self._pause)
        self._readers: dict[int, list[str]] = defaultdict(list)  # by number, the layers whose shortcut a tensor is
        for name, read in reads.items():
            if read.shortcut:
                self._readers[read.shortcut.number].append(name)
        self._norms = norms_by_mean(network)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.batch_norm and len(args) > 1 and (name := self._norms.get(id(args[1]))):
            x = args[0]
            mean = x.mean(dim=[0, *range(2, x.dim())], dtype=torch.float64)
            threading.current_thread().pause(name, True, (mean, x.numel() // x.shape[1]))
        return super().__torch_function__(func, types, args, kwargs)

    def returned(self, number: int, func: Callable, args: tuple, kwargs: dict, result: Tensor) -> None:
        for name in self._readers.get(number, ()):
            self._kept[name] = result

    @property
    def _kept(self) -> dict[str, Tensor]:
        return self._thread.__dict__.setdefault("kept", {})

    def _pause(self, name: str, call: LayerCall) -> Tensor | None:
        change = threading.current_thread().pause(name, False, (call, self._kept.pop(name, None)))
        return change and change(call.input)
