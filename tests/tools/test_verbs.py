"""What the verbs on a trained run share."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from cl_jax.core.errors import ConfigError
from cl_jax.tools import _page, embed, export, label, report, verbs
from cl_jax.training.trained import Trained
from cl_jax.weights import runs
from cl_jax.weights.importing import Imported


@pytest.mark.parametrize("verb", [embed, export, label, report])
def test_the_run_and_its_checkpoint_are_the_same_options(verb, capsys):
    with pytest.raises(SystemExit):
        verb.parser().parse_args(["--help"])
    said = capsys.readouterr().out
    assert "the workdir of a run, or of one of its stages" in said and "--best" in said


def test_a_mistake_is_one_sentence_and_what_is_none_keeps_its_traceback(capsys):
    def fails(error):
        def f(args):
            raise error

        return f

    assert verbs.called(lambda args: args, 0) == 0
    assert verbs.called(fails(ConfigError("no such thing.")), None) == 1
    assert capsys.readouterr().err == "error: no such thing.\n"
    noted = ConfigError("no such thing.")
    noted.add_note("Leave it out.")
    assert verbs.called(fails(noted), None) == 1
    assert capsys.readouterr().err == "error: no such thing.\nLeave it out.\n"
    assert verbs.called(fails(KeyboardInterrupt()), None) == 130
    assert verbs.called(fails(RuntimeError("a fault")), None) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "source, given, words",
    [
        (_page._source, "", "; give a folder of images: --data=FOLDER"),
        (_page._source, "phtos", ", and there is no phtos; give a folder of images: --data=FOLDER"),
        (embed._source, None, "; give a folder of images as FOLDER"),
    ],
)
def test_an_imported_run_without_data_says_how_to_give_them(source, given, words):
    found = Imported({"name": "resnet"}, {}, {}, "timm", (), (), (), "", (), {})
    nothing = SimpleNamespace(method=None, encoder=None, mesh=None)
    run = Trained(Path("runs/theirs"), runs.config_of(found, "w.pth"), nothing, None)
    with pytest.raises(ValueError, match=f"^runs/theirs has no data of its own{words}"):
        source(run, given)
