"""Attacks on what must not go wrong in silence: `make test-hostile`."""
