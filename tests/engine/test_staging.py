"""The ring of staging buffers: what one sweep left behind does not reach the next."""

from concurrent.futures import Future

import pytest

from penstock.engine.staging import Stager
from penstock.errors import UserError
from penstock.memory.clock import Clock
from penstock.memory.device import CpuDevice


class Store:
    """Fetches that end as a test says."""

    device = CpuDevice()
    error: Exception | None = None

    def fetch(self, layer, blocks, into):
        fetched = Future()
        if self.error is None:
            fetched.set_result(None)
        else:
            fetched.set_exception(self.error)
        return [fetched]


class Portion:
    blocks = ()


def test_an_error_of_a_sweep_that_broke_off_is_not_one_of_the_next():
    store, portion = Store(), Portion()
    stager = Stager(store, 4096, Clock())
    store.error = UserError("cannot read kv-0")
    stager.begin([(0, portion)])
    with pytest.raises(UserError, match="kv-0"), stager.staged(0, portion):
        pass
    store.error = None
    stager.begin([(0, portion)])
    with stager.staged(0, portion) as buffer:
        assert buffer.numel() == 4096
