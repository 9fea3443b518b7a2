"""Which dtypes a run takes, by flag, checkpoint and hardware."""

import pytest
import torch

from penstock.errors import UserError
from penstock.model.packing import Packing
from penstock.model.precision import Precision, choose
from penstock.quant.grouped import Grouped

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


@pytest.mark.parametrize(
    ("asked", "checkpoint", "device", "bf16", "expected"),
    [
        ("auto", "bfloat16", "cuda", False, (BF16, BF16, BF16)),
        ("auto", "float16", "cuda", False, (F16, F16, F16)),
        ("auto", "bfloat16", "cpu", True, (BF16, BF16, BF16)),
        ("auto", "float16", "cpu", True, (BF16, BF16, BF16)),
        ("auto", "bfloat16", "cpu", False, (BF16, F32, BF16)),
        ("auto", "float16", "cpu", False, (F16, F32, F16)),
        ("auto", "float32", "cpu", False, (F32, F32, F32)),
        ("auto", None, "cpu", False, (BF16, F32, BF16)),
        ("float32", "bfloat16", "cpu", False, (BF16, F32, F32)),
        ("float32", None, "cpu", False, (F32, F32, F32)),
        ("bfloat16", "float32", "cpu", False, (BF16, BF16, BF16)),
        ("float16", "bfloat16", "cpu", False, (F16, F16, F16)),
    ],
)
def test_stored_computed_and_kept(asked, checkpoint, device, bf16, expected):
    chosen = choose(asked, checkpoint, device, bf16)
    assert (chosen.stored, chosen.compute, chosen.kv) == expected


def test_a_difference_from_the_checkpoint_is_said():
    assert "float16" in (choose("auto", "float16", "cpu", True).note or "")
    assert "computed in float32" in (choose("auto", "bfloat16", "cpu", False).note or "")
    assert choose("auto", "bfloat16", "cpu", True).note is None
    assert choose("auto", "float16", "cuda", False).note is choose("auto", "float32", "cpu", False).note is None
    assert "the checkpoint is float64; it runs in float32" in (choose("auto", "float64", "cuda", False).note or "")


@pytest.mark.parametrize(("device", "bf16"), [("cuda", False), ("cpu", True), ("cpu", False)])
def test_weights_of_no_dtype_of_their_own_are_said_to_be_converted(device, bf16):
    """Those of a GGUF file do not stay what they are."""
    note = choose("auto", None, device, bf16).note or ""
    assert note.startswith("weights are converted to bfloat16") and "stay" not in note
    assert ("computed in float32" in note) == (device == "cpu" and not bf16)


def test_an_unknown_dtype_is_refused():
    with pytest.raises(UserError, match="there are auto, bfloat16"):
        choose("int8", "bfloat16", "cpu", True)


def test_what_is_packed_is_told_and_named():
    four, own = Packing(Grouped(4)), Packing(own=True)
    asked = choose("auto", "bfloat16", "cpu", False, four)
    assert (
        asked.note == "the layers' weights are packed in 4 bits, and products are computed in float32; KV is bfloat16"
    )
    assert asked.name == "bfloat16/float32/bfloat16+int4g64"
    blocks = choose("auto", None, "cpu", False, packed_in=("float32",))
    assert blocks.note is not None and blocks.note.startswith("weights stay packed as the file has them")
    assert blocks.packing == own and blocks.name.endswith("+own")
    assert choose("auto", None, "cuda", False, packed_in=("float32",)).packing == Packing()  # computed in 16 bits
    assert choose("auto", None, "cpu", False, Packing(), packed_in=("float32",)).packing == Packing()
    in_16_bits = choose("auto", None, "cpu", True, packed_in=("float32", "bfloat16"))
    assert in_16_bits.note == (
        "weights stay packed as the file has them, and products are computed in bfloat16; KV is bfloat16"
    )


KV = "KV is bfloat16 and packed in 8 bits, but for each row's newest 64 tokens at most"
WIDENED = "weights and KV stay bfloat16; this CPU does not compute it: each product is computed in float32"


@pytest.mark.parametrize(
    ("packing", "note"),
    [
        (Packing(kv=Grouped(8)), f"{WIDENED}; {KV}"),
        (Packing(head=Grouped(4)), WIDENED),
        (
            Packing(Grouped(4), kv=Grouped(8)),
            f"the layers' weights are packed in 4 bits, and products are computed in float32; {KV}",
        ),
        (
            Packing(own=True, kv=Grouped(8)),
            f"weights stay packed as the file has them, and products are computed in float32; {KV}",
        ),
    ],
)
def test_what_is_told_where_a_part_of_it_is_packed(packing, note):
    assert choose("auto", "bfloat16", "cpu", False, packing, packed_in=("float32",)).note == note


def test_nothing_is_told_of_dtypes_that_are_the_checkpoint_s():
    assert choose("auto", "bfloat16", "cpu", True, Packing(kv=Grouped(8))).note == KV
    assert choose("auto", "bfloat16", "cpu", True, Packing(head=Grouped(8))).note is None
    assert choose("bfloat16", "bfloat16", "cpu", True, Packing(own=True), packed_in=("bfloat16",)).note is None


@pytest.mark.parametrize(("device", "bf16"), [("cuda", False), ("cpu", True), ("cpu", False)])
def test_what_the_file_has_packed_stays_so_in_every_dtype_that_holds_it(device, bf16):
    chosen = choose("auto", "bfloat16", device, bf16, packed_in=("float32", "bfloat16"))
    assert chosen.packing == Packing(own=True)
    assert (chosen.note or "").startswith("weights stay packed") == (device == "cpu" and not bf16)
    assert choose("float16", "bfloat16", device, bf16, packed_in=("float32", "bfloat16")).packing == Packing()


def test_a_job_that_packed_nothing_goes_on_so():
    whole = choose("auto", "bfloat16", "cpu", True, Packing(), packed_in=("bfloat16",))
    assert whole.name == "bfloat16"
    again = choose(Precision.again(whole.name), "bfloat16", "cpu", True, packed_in=("bfloat16",))
    assert again.name == "bfloat16" and not again.packing.own
    assert choose("auto", "bfloat16", "cpu", True, packed_in=("bfloat16",)).packing.own


def test_a_packing_of_no_name_is_refused():
    with pytest.raises(UserError, match=r"--dtype bfloat16\+int3g64: int3g64 is no packing"):
        choose("bfloat16+int3g64", "bfloat16", "cpu", True)


@pytest.mark.parametrize(
    "name",
    ["int4g64", "int8g32-plain", "int4g64+head-int8g64", "head-int8g64+own", "own", "kv-int4g64", "int8g64+kv-int4g64"],
)
def test_a_job_that_goes_on_packs_as_it_began(name):
    began = choose(f"bfloat16/float32/bfloat16+{name}", "bfloat16", "cpu", False, packed_in=("float32",))
    assert began.packing.name == name
    assert choose(began.name, "bfloat16", "cpu", False, packed_in=("float32",)) == began
