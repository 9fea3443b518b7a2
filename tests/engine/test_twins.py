"""Tensors of modules on two processors in turn."""

import torch
from torch import nn

from penstock.engine.twins import Twins


def test_modules_have_their_own_tensors_again() -> None:
    module = nn.Linear(2, 2)
    module.register_buffer("scale", torch.ones(1))
    own = {name: id(tensor) for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    twins = Twins([module])
    twins.bind(True)
    assert not own.items() & {name: id(getattr(module, name)) for name in own}.items()
    twins.bind(False)
    assert own == {name: id(getattr(module, name)) for name in own}
