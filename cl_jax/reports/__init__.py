"""What a trained network makes of examples, as one HTML page: `cl-jax report`."""
