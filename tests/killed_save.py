"""One save in a process that ends, without a word, at its n-th call to the file system: what
tests/training/test_checkpoint.py runs.

    python -m tests.killed_save FOLDER last|best N
"""

import os
import sys
import threading

CALLS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir")
CALLS += ("os.utime", "os.chmod", "os.truncate", "shutil.rmtree", "shutil.move", "os.link")
STATUS = 137  # of a process that SIGKILL ended


def main(folder: str, what: str, left: int) -> int:
    from cl_jax.training import checkpoint
    from tests.training.test_chaos import state_of

    store = checkpoint.Checkpoints(folder, keep=3)
    assert store.restore(state_of(0)).step == 2
    lock = threading.Lock()

    def hook(event, given):
        nonlocal left
        if event in CALLS and folder in str(given[0]):
            with lock:
                left -= 1
                if left < 0:
                    os._exit(STATUS)

    sys.addaudithook(hook)
    if what == "last":
        store.save(state_of(3))
    else:
        store.save_best(state_of(2), 0.5)
    store.wait()
    os._exit(0)  # closing the store is not part of the save


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
