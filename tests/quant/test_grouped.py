"""How many bytes packed rows take, and how formats are called."""

import pytest

from penstock.quant.grouped import BITS, GROUPS, Grouped


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group", GROUPS)
def test_a_format_is_found_by_its_name(bits, group):
    for form in (Grouped(bits, group), Grouped(bits, group, plain=True)):
        assert Grouped.named(form.name) == form


@pytest.mark.parametrize("name", ["bfloat16", "int4", "int4g64x", "uint8", ""])
def test_other_dtypes_are_no_formats(name):
    assert Grouped.named(name) is None


@pytest.mark.parametrize(
    ("form", "columns", "nbytes"),
    [
        (Grouped(4, 64), 128, 2 * (4 + 32)),
        (Grouped(4, 128), 576, 4 * (4 + 64) + 4 + 32),  # the last group has 64 of 128
        (Grouped(4, 64), 65, 36 + 4 + 16),  # one element more takes a block of 32
        (Grouped(8, 64), 64, 68),
        (Grouped(8, 32), 33, 36 + 36),
    ],
)
def test_bytes_of_a_row(form, columns, nbytes):
    assert form.row_bytes(columns) == nbytes
    assert form.nbytes((3, 5, columns)) == 15 * nbytes


@pytest.mark.parametrize(("bits", "group"), [(3, 64), (4, 48), (16, 64)])
def test_other_formats_are_refused(bits, group):
    with pytest.raises(ValueError, match=f"{bits} bits in groups of {group}"):
        Grouped(bits, group)
