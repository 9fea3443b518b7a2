"""Kernels are used where they give what torch gives, and nowhere else."""

import logging

import pytest
import torch
from tests.cuda.places import DEVICE
from tests.cuda.test_few import assert_product, tokens, weights
from triton.errors import TritonError

from penstock.cuda import elements as kernels
from penstock.cuda import trial
from penstock.engine import linear
from penstock.engine.linear import Widening
from penstock.quant import packed
from penstock.quant.elements import elements
from penstock.quant.forms import LAYOUTS
from penstock.quant.grouped import Grouped
from penstock.quant.packed import Packed

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FORM, CUDA = Grouped(4), torch.device("cuda", 0)
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numpy: scales of any bytes are not all finite


@pytest.fixture(autouse=True)
def untried():
    """Nothing was tried yet."""
    for cached in (trial.works, trial._tell):
        cached.cache_clear()
    yield
    for cached in (trial.works, trial._tell):
        cached.cache_clear()


@pytest.fixture
def newest(monkeypatch):
    """As if there were a CUDA device."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", LAYOUTS, ids=lambda form: form.name)
def test_every_format_passes(form, dtype):
    assert trial.agrees(form, dtype, DEVICE)


@pytest.mark.parametrize("broken", ["unpack", "multiply_few"])
def test_either_kernel_may_fail(broken, monkeypatch):
    """Of a kernel that reads the nibbles of one format as the other's, every result is wrong."""
    module = __import__("penstock.cuda.unpacking" if broken == "unpack" else "penstock.cuda.few", fromlist=["RECORDS"])
    monkeypatch.setattr(module, "RECORDS", {"int4": kernels.RECORDS["int8"]})
    assert not trial.agrees(FORM, torch.float32, DEVICE)


def test_what_is_wrong_is_told_once(newest, monkeypatch, caplog):
    monkeypatch.setattr(trial, "agrees", lambda *_: False)
    with caplog.at_level(logging.WARNING):
        assert not any(trial.works(FORM, torch.bfloat16, device) for device in (CUDA, torch.device("cuda", 1)))
    told = "Triton's kernels are not used on GPU: they unpack int4g64 to bfloat16 otherwise than torch does"
    assert [record.getMessage() for record in caplog.records] == [told]


@pytest.mark.parametrize("kind", [RuntimeError, TritonError, TypeError, PermissionError])
def test_what_does_not_compile_is_told_in_a_line(kind, newest, monkeypatch, caplog):
    def agrees(*_):
        raise kind("Failed to find C compiler.\nPlease specify one")

    monkeypatch.setattr(trial, "agrees", agrees)
    with caplog.at_level(logging.WARNING):
        assert not trial.works(FORM, torch.bfloat16, CUDA)
        assert not trial.works(FORM, torch.float16, CUDA)
    told = "Triton's kernels are not used on GPU: Failed to find C compiler."
    assert [record.getMessage() for record in caplog.records] == [told]


def test_what_works_is_tried_once(newest, monkeypatch):
    tried = []
    monkeypatch.setattr(trial, "agrees", lambda *what: not tried.append(what))
    assert all(trial.works(FORM, torch.bfloat16, CUDA) for _ in range(3))
    assert tried == [(FORM, torch.bfloat16, CUDA)]


def test_nothing_is_tried_where_triton_is_of_no_use(monkeypatch):
    def agrees(*_):
        raise AssertionError

    monkeypatch.setattr(trial, "agrees", agrees)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not trial.works(FORM, torch.bfloat16, CUDA)
    assert not trial.works(FORM, torch.bfloat16, torch.device("cpu"))
    trial.works.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(trial, "find_spec", lambda name: None)
    assert not trial.works(FORM, torch.bfloat16, CUDA)


@pytest.mark.parametrize("works", [True, False])
def test_rows_are_unpacked_by_the_kernel_that_works(works, monkeypatch):
    weight, called = weights(FORM, 6, 100), []
    expected = elements(FORM, weight.data, 100)
    monkeypatch.setattr(Packed, "device", CUDA)
    monkeypatch.setattr(packed, "works", lambda *asked: called.append(asked) or works)
    if works:
        monkeypatch.setattr(packed, "elements", None)
    made = torch.empty(2, 3, 100, device=DEVICE)
    Packed(FORM, 100, weight.data.view(2, 3, -1)).write(made)
    assert torch.equal(made.view(6, 100), expected)
    assert called == [(FORM, torch.float32, CUDA)]


@pytest.mark.parametrize("number", [1, trial.FEW, trial.FEW + 1])
def test_few_tokens_are_multiplied_by_the_kernel_that_works(number, monkeypatch):
    """More meet a matrix that was unpacked."""
    x, weight, unpacked = tokens(number, 100, torch.bfloat16), weights(FORM, 30, 100), []
    write = Packed.write
    monkeypatch.setattr(Packed, "write", lambda self, target: unpacked.append(self) or write(self, target))
    monkeypatch.setattr(linear, "works", lambda *asked: asked == (FORM, torch.bfloat16, DEVICE))
    monkeypatch.setattr(Widening, "_kernel", lambda self, x, weight: None)
    bias = torch.full((30,), 0.5, dtype=torch.bfloat16, device=DEVICE)
    widening = Widening(torch.bfloat16, DEVICE)
    assert_product(x, weight, widening.linear(x.view(1, number, 100), weight, None)[0])
    assert bool(unpacked) == (number > trial.FEW)
    biased = widening.linear(x, weight, bias).float() - widening.linear(x, weight, None).float()
    assert (biased - 0.5).abs().max() < 0.02


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", LAYOUTS, ids=lambda form: form.name)
def test_works_on_this_device(form, dtype):
    assert trial.works(form, dtype, CUDA)


@pytest.mark.gpu
def test_kernels_run_in_the_current_stream():
    """What is written before them in a stream is what they read, and what is read behind them is what they wrote."""
    assert trial.works(FORM, torch.bfloat16, CUDA)
    weight, x = weights(FORM, 4096, 4096), tokens(4, 4096, torch.bfloat16)
    late = torch.zeros_like(weight.data)
    made, out = torch.empty(4096, 4096, dtype=torch.bfloat16, device=CUDA), x.new_empty(4, 4096)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(100_000_000)
        late.copy_(weight.data)
        Packed(FORM, 4096, late).write(made)
        linear.Widening(torch.bfloat16, CUDA).write(x, Packed(FORM, 4096, late), out)
        made, out = made.clone(), out.clone()
    torch.cuda.synchronize()
    assert torch.equal(made, elements(FORM, weight.data, 4096).bfloat16())
    assert_product(x, weight, out)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_kernels_run_on_the_device_of_their_tensors():
    second = torch.device("cuda", 1)
    weight = weights(FORM, 40, 100)
    made = Packed(FORM, 100, weight.data.to(second)).wide(torch.bfloat16)
    assert torch.equal(made.cpu(), elements(FORM, weight.data, 100).bfloat16().cpu())
    assert torch.cuda.current_device() == 0
