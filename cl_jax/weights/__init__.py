"""Networks of other libraries in and out: checkpoints are read without running anything in them."""
