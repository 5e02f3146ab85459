"""The checker of types that jaxtyping puts on every function of bircher while the tests run."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""As the language's own rules have it, an int may stand where a float is asked for."""
