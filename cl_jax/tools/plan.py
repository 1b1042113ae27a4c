"""Says what a run will need, before it runs: memory of a device by kind, arithmetic, traffic
between devices, a floor of the step's time, the largest batch that fits.

examples:
  cl-jax plan simclr_v2:imagenet2012 --devices=32 --device=v5p
  cl-jax plan simclr_v1:cifar10 --device=h200 --compiler=gpu --layers
  cl-jax plan simclr_v2:folder --config.data.path=photos
  cl-jax plan simclr_v2:folder --examples=50000

Nothing is trained. Sizes that `cl-jax train` would fit to a folder are fitted here too. The exit
status is 1 for a config that does not fit. `--compiler=tpu` needs libtpu, `--compiler=gpu` jax's
CUDA plug-in; neither needs the device.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from cl_jax.planning.devices import CHIPS, DEVICES
from cl_jax.training import configs


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        "cl-jax plan",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("given", nargs="?", metavar="CONFIG", help="the same as --config")
    options.add_argument(
        "--config", help="what to plan: a name, a path or a module, with :variant[,variant]"
    )
    options.add_argument("--devices", type=int, default=1, help="devices of the run (default 1)")
    options.add_argument(
        "--device", default="h200", choices=sorted(DEVICES), help="their kind (default h200)"
    )
    options.add_argument(
        "--compiler",
        default="cpu",
        choices=("cpu", "gpu", "tpu"),
        help="whose compiler says what the temporaries take (default cpu)",
    )
    options.add_argument("--stage", help="stage of a config that has several")
    options.add_argument(
        "--examples", type=int, default=0, help="training images, where the data are not here"
    )
    options.add_argument(
        "--image_size",
        type=int,
        default=0,
        help="side of the stored images, where the data are not here",
    )
    options.add_argument(
        "--nosearch",
        dest="search",
        action="store_false",
        help="do not look for the largest batch, which compiles up to four programs more",
    )
    options.add_argument(
        "--layers", action="store_true", help="show the parts of a GPU's program too"
    )
    options.add_argument("--out", default="", help="write the plan here as JSON")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    options = parser()
    settings, words = configs.take_settings(sys.argv[1:] if argv is None else argv)
    args = options.parse_intermixed_args(words)
    if not (args.config or args.given):
        options.error("CONFIG is needed: cl-jax plan simclr_v2:imagenet2012 --devices=32")
    if args.devices < 1:
        options.error(f"--devices={args.devices}; expected at least 1")
    configs.see_working_folder()

    import jax

    from cl_jax.core import xla
    from cl_jax.core.errors import SaveError
    from cl_jax.core.paths import user_path
    from cl_jax.data.folder import Survey
    from cl_jax.data.tables import check_place
    from cl_jax.planning import plan
    from cl_jax.training import fit, stages
    from cl_jax.training.workdir import replace_text
    from cl_jax.weights import importing

    if args.compiler != "tpu":
        xla.prepare(args.compiler)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", args.devices)
    try:
        check_place(args.out, ".json")
        config = configs.load(args.config or args.given)
        configs.change(config, settings)
        with config.unlocked():
            config.devices = args.devices
            if args.stage:
                config.stage = args.stage
        given = [key for key, _ in settings]
        survey = Survey(args.examples, 0, {}, ()) if args.examples else None
        lines = [*fit.fit(config, given, None, survey), *importing.settle(config, given)]
        print("\n".join(lines), file=sys.stderr, end="\n" if lines else "")
        _, config, _ = stages.stages(config, "plan", given)[0]
        if config.get("previous", ""):
            raise ValueError(
                "a stage after the first starts from a finished run; plan the first stage."
            )
        config = plan.with_declared_data(config, examples=args.examples, image_size=args.image_size)
        mesh = {"cpu": lambda *_: None, "tpu": plan.tpu_mesh, "gpu": plan.gpu_mesh}[args.compiler](
            args.device, args.devices
        )
        if args.compiler == "tpu" and mesh is None:
            raise ValueError(
                f"libtpu is not installed, or no slice of {args.device} has {args.devices} "
                f"chips; install '.[tpu]', or leave --compiler out."
            )
        if args.compiler == "gpu" and mesh is None:
            raise ValueError(
                f"jax's CUDA plug-in is not installed, or {args.device} is none of "
                f"{', '.join(CHIPS)}; install '.[cuda]', or leave --compiler out."
            )
        found = plan.plan(config, DEVICES[args.device], mesh=mesh, search=args.search)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(plan.report(found, table=args.layers))
    if args.out:
        try:
            replace_text(user_path(args.out), json.dumps(found, indent=1) + "\n")
        except SaveError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0 if found["fits"] else 1
