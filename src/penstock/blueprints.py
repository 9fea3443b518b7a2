"""Blueprints of one model on one device: the same source, in any packing."""

from dataclasses import dataclass

from penstock.engine.build import Blueprint, blueprint
from penstock.model import precision
from penstock.model.packing import Packing
from penstock.model.precision import Precision
from penstock.model.source import Source


@dataclass(frozen=True, slots=True)
class Blueprints:
    """dtype: as ``--dtype`` asks. device: ``cuda`` or ``cpu``. cpu_bfloat16: whether the CPU computes that.

    on_gpu: layers share one group of KV. page_bytes: the largest page.
    """

    source: Source
    dtype: str
    device: str
    cpu_bfloat16: bool
    on_gpu: bool
    trust_remote_code: bool = False
    page_bytes: int | None = None

    def precision(self, packing: Packing | None) -> Precision:
        """What the model is stored, computed and kept in; UserError for a dtype that is none."""
        found = self.source
        packed_in = found.packed_in(self.device)
        return precision.choose(self.dtype, found.checkpoint_dtype, self.device, self.cpu_bfloat16, packing, packed_in)

    def packed(self, packing: Packing | None) -> Blueprint:
        """The model packed so; None: as the dtype says. UserError for what cannot be run exactly."""
        return blueprint(
            self.source,
            self.precision(packing),
            trust_remote_code=self.trust_remote_code,
            one_group=self.on_gpu,
            page_bytes=self.page_bytes,
        )
