"""Vectors as wide as the processor has them, and no wider."""

import subprocess
import sys

import pytest

CODE = """
import llvmlite.binding
features = dict(llvmlite.binding.get_host_cpu_features(), avx512f={present})
llvmlite.binding.get_host_cpu_features = lambda: features
from penstock.compiled.vectors import LANES
print(LANES)
"""


@pytest.mark.parametrize(("present", "lanes"), [(True, 16), (False, 8)])
def test_a_feature_that_is_listed_as_absent_is_absent(present, lanes):
    code = CODE.format(present=present)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == lanes
