"""How often each target is tried: `tools/fuzz EXAMPLES`."""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "fuzz",
    max_examples=int(os.environ.get("EXAMPLES", "1000")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("fuzz")
