"""The score of a pair: `exact`, and many at once with a bound: `near`."""
