"""Hypothesis without deadlines: no test may depend on how busy the machine is."""

from hypothesis import settings

settings.register_profile("rootseal", deadline=None)
settings.load_profile("rootseal")
