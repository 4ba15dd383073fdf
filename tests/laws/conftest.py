"""The laws run with the core's shapes and dtypes checked."""

import pytest

from support.shapes import check_core


@pytest.fixture(autouse=True, scope="package")
def shapes_of_the_core():
    with pytest.MonkeyPatch.context() as patch:
        check_core(patch)
        yield
