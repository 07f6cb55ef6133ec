"""Run a mixed network: torch computes its float layers, the packed kernels its binary ones.

Binary layers give the same bits for any number of threads and any instruction set. Float layers are torch's own: their
last bits may depend on both, and on the size of the picture.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bam_plugin.engine.engine import check_image, choose_isa, choose_threads
from bam_plugin.engine.tile_memory import PATCHES, RESULTS, TileMemory
from bam_plugin.mixed import torch_op
from bam_plugin.mixed.mixed_network import load_network, sizes_of
from bam_plugin.mixed.reach import run_fitted
from bam_plugin.mixed.torch_module import PackedConv2d, packed_layers
from bam_plugin.packed.bits import words_for
from bam_plugin.packed.errors import EngineError, UnbuildableNetworkError
from bam_plugin.packed.mixed_format import MixedModel
from bam_plugin.packed.precision import FLOAT, check_precision

_PROBE_SIZE = 48  # edge of the picture on which memory is measured
_UNSEEN = 1.3  # memory that operators allocate and free inside, over the maps that can be seen


class MixedEngine:
    """A mixed network ready to run. Its use is that of `bam_plugin.engine.Engine`.

    `isa` and `threads` are the choices in force. While it runs, torch uses `threads` threads, too.
    """

    def __init__(
        self,
        model: MixedModel,
        *,
        isa: str | None = None,
        threads: int | None = None,
        precision: str = FLOAT,
        network: nn.Module | None = None,
    ):
        """`network` is the packed network of the model, if it exists already. It is changed to channels_last.

        Raises EngineError for a precision other than fp32, because a mixed network offers no other.
        """
        if check_precision(precision) != FLOAT:
            raise EngineError(f"a mixed network offers no precision but {FLOAT}, found {precision!r}")
        self.model = model
        self.isa = choose_isa(isa)
        self.threads = choose_threads(threads)
        built = load_network(model) if network is None else network
        # This is the layout of the kernels, so maps go to them and back as they are.
        self.network = built.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.sizes = sizes_of(model)
        if network is None:
            self._check_promises()

    def _check_promises(self) -> None:
        """Raise UnbuildableNetworkError unless the network makes of small pictures what the file says."""
        model = self.model
        for edge in (self.sizes.fit(1), self.sizes.fit(1) + model.size_multiple):
            size = f"pictures of {model.num_in_ch} channels and {edge}x{edge} pixels"
            promised = (1, model.num_out_ch, edge * model.scale, edge * model.scale)
            try:
                with self.settings():
                    made = self.network(torch.zeros(1, model.num_in_ch, edge, edge))
            except Exception as error:  # a foreign network may raise anything
                raise UnbuildableNetworkError(
                    f"the network does not run on {size}, as the file says ({type(error).__name__}: {error})"
                ) from error
            found = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
            if found != promised:
                raise UnbuildableNetworkError(f"the file promises {promised} for {size}, the network makes {found}")

    def run(self, image: np.ndarray) -> np.ndarray:
        """Upscale one image: float32 (H, W, C) -> float32 (H * scale, W * scale, C_out), not clipped.

        If the network does not take a size, the last row and column are repeated as far as needed. Raises EngineError
        if the image is not float32, has no pixel or has another number of channels.
        """
        check_image(image, self.model.num_in_ch)
        x = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
        with self.settings():
            result = run_fitted(self.network, x, self.sizes)
        return np.ascontiguousarray(result[0].permute(1, 2, 0).numpy())

    def run_observed(self, image: np.ndarray) -> tuple[np.ndarray, dict[str, list[np.ndarray]]]:
        """`run`, and for each binary layer the maps (H, W, C) of its calls and bases: True where a bit is low."""
        signs: dict[str, list[np.ndarray]] = defaultdict(list)

        def note(module: PackedConv2d, inputs: tuple[Tensor, ...], name: str) -> None:
            signs[name] += [(~high[0]).permute(1, 2, 0).numpy() for high in module.signs(inputs[0])]

        handles = [
            module.register_forward_pre_hook(functools.partial(note, name=name))
            for name, module in packed_layers(self.network)
        ]
        try:
            return self.run(image), signs
        finally:
            for handle in handles:
                handle.remove()

    @functools.cached_property
    def bytes_per_pixel(self) -> int:
        """Memory of a run over the pixels of its picture, measured on a small picture."""
        edge = self.sizes.fit(_PROBE_SIZE)
        watch = _LiveBytes()
        with self.settings(), watch:
            run_fitted(self.network, torch.zeros(1, self.model.num_in_ch, edge, edge), self.sizes)
        words = sum(words_for(module.layer.in_channels) * 8 for _, module in packed_layers(self.network))
        return math.ceil(_UNSEEN * watch.peak / edge**2) + words

    def tile_memory(self) -> TileMemory:
        """The memory of a tile, estimated from above."""
        result = RESULTS * 4 * self.model.num_out_ch * self.model.scale**2
        return TileMemory(per_pixel=self.bytes_per_pixel + result, per_column=0, fixed=PATCHES)

    @contextlib.contextmanager
    def settings(self) -> Iterator[None]:
        """Inside the block, torch uses the engine's threads and the binary layers its instruction set."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with torch.inference_mode(), torch_op.instruction_set(self.isa):
                yield
        finally:
            torch.set_num_threads(before)


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operators have made and nobody has freed. `peak` is their maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run the operator and note its tensors."""
        result = func(*args, **(kwargs or {}))
        self._live = {key: entry for key, entry in self._live.items() if not entry[0].expired()}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)
                self._live.setdefault(reference.cdata, (reference, storage.nbytes()))
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return result
