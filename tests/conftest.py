"""How hypothesis runs here: without a clock, and with the same examples every time."""

import hypothesis

hypothesis.settings.register_profile("lalref", deadline=None, derandomize=True)
hypothesis.settings.load_profile("lalref")
