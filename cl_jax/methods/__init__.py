"""One file per method; each has `make(*, encoder, tx, views, run, ...) -> Method`."""
