"""The contract of a method, and what several folders need."""
