"""The laws run with the core's shapes and dtypes checked."""

import pytest

from support.shapes import check_core


# The scope "package" would end with the session: a folder of tests is no package.
@pytest.fixture(autouse=True, scope="module")
def shapes_of_the_core():
    with pytest.MonkeyPatch.context() as patch:
        check_core(patch)
        yield
