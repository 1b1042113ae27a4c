"""Checks of runs: devices against each other, a step replayed, numbers that are not finite, a
verdict."""
