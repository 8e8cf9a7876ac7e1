"""How hypothesis runs here: without a clock, and with the same examples every time. And the cuda engine on the CPU."""

import hypothesis
import pytest
from samples import ENGINES

hypothesis.settings.register_profile("lalref", deadline=None, derandomize=True)
hypothesis.settings.load_profile("lalref")


@pytest.fixture(autouse="cuda" in ENGINES, scope="session")
def cuda_engine_on_the_cpu():
    """Let engine="cuda" serve NumPy arrays, where LALREF_TEST_ENGINES asks for it."""
    from cuda_host.engine import served_by_name

    with served_by_name():
        yield
