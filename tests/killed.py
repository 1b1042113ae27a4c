"""One process of the job that tests/test_chaos.py kills: cl_jax.main with a small method that compiles in a second.

The method remembers, has work before each epoch and a plan. What is evaluated is the step's number, so that each evaluation
is the best so far, and is saved as that too.
"""

from cl_jax import main, train
from tests import small

train.build = lambda config, previous: small.epochal(config)
train.protocols.Evaluator.online = lambda _, state, final: {"knn/top1": int(state.step) / 1000}
train.protocols.draw_curve = lambda *_: None

if __name__ == "__main__":
    main.run()
