"""Pairs teach a student of their model: another model of the same samples and schedule, which the file is for."""

import pytest
import torch

import gas
from gas.classical.registry import Classical
from gas.losses import l2
from gas.models.custom import OwnModel
from gas.models.runtime import precise
from gas.pairs.dataset import check_conditions, read_pairs, teacher_of
from gas.pairs.fingerprint import PairsSpec
from gas.pairs.teacher import teach, write_pairs
from gas.solver_schema import parse_document
from gas.training.validation import evaluate
from support import commands

pytestmark = pytest.mark.usefixtures(
    "quick_gauss_newton", "few_classical_solvers", "short_runs", "small_digits"
)

TEACHER = Classical("unipc-3-bh2", "log_snr", 6, 1e-3)


def digits_like(schedule=None, size=8, **more):
    """A network of one layer on images; each has the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layer = torch.nn.Linear(size**2, size**2).requires_grad_(False)
    schedule = schedule or gas.VPLinear()
    shape = (1, size, size)
    return OwnModel(
        lambda x, t: torch.tanh(layer(x.flatten(1))).view_as(x) * (1 - t).to(x),
        schedule,
        shape,
        t_end=1e-3,
        weights=layer,
        **more,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    for _ in write_pairs(digits_like(), TEACHER, root, PairsSpec(range(40))):
        pass
    return root


def test_only_a_student_takes_the_pairs_of_another_model(folder):
    student = precise(digits_like(), quantize="int8")
    with pytest.raises(ValueError, match=r"learn for a copy of it add --student"):
        read_pairs(folder, model=student)
    pairs = read_pairs(folder, model=student, student=True)
    assert teacher_of(pairs, student)["model"] == digits_like().fingerprint()
    assert (
        teacher_of(pairs, digits_like())
        == TEACHER.config()
        == teacher_of(pairs, precise(digits_like(), "bf16"))
    )


@pytest.mark.parametrize(
    ("student", "named"),
    [
        (lambda: digits_like(size=4), r"shape: \[1, 8, 8\] stored, \[1, 4, 4\] expected"),
        (lambda: digits_like(gas.VPLinear(0.1, 10.0)), r"schedule.beta_1: 20.0 stored, 10.0 expected"),
        (lambda: digits_like(gas.Flow()), r"schedule.kind: 'vp_linear' stored, 'flow' expected"),
        (lambda: digits_like(conditions=torch.zeros(3, 2), null=None), "conditions: 'nothing' stored"),
    ],
)
def test_a_student_of_other_samples_is_refused(student, named, folder):
    with pytest.raises(ValueError, match=named):
        read_pairs(folder, model=student(), student=True)


def test_pairs_in_memory_are_refused_to_a_student_of_another_schedule():
    pairs, student = teach(digits_like(), TEACHER, range(12)), digits_like(gas.Flow())
    solver = gas.GeneralizedSolver(student.schedule, 2, student.t_end)
    with pytest.raises(
        ValueError, match="made on schedule vp_linear, of other noise than the schedule of own"
    ):
        next(gas.fit(solver, student, pairs))


@pytest.mark.slow
def test_the_file_names_both_models_and_serves_the_student_alone(folder, tmp_path):
    student = precise(digits_like(), quantize="int4")
    pairs = read_pairs(folder, model=student, student=True)
    search = gas.training.StartSearch("ddim/log_snr")
    *_, result = gas.distill(student, *pairs.split(8), 2, search=search, config=gas.GaussNewton(iterations=2))
    document = gas.save(tmp_path / "s.json", result, model=student).document
    assert document.teacher == {**TEACHER.config(), "model": digits_like().fingerprint()}
    assert document.model == {**student.fingerprint(), "quantize": "int4"}
    artefact = gas.load(tmp_path / "s.json")
    artefact.check(student)
    with pytest.raises(ValueError, match="sha256"):
        artefact.check(digits_like())
    assert "samples of another model" in gas.evaluation.solver_files.provenance_warnings(artefact, student)[0]
    shown = commands.run("inspect", tmp_path / "s.json").stdout
    assert f"{document.model['sha256'][:16]} int4" in shown
    assert document.teacher["model"]["sha256"][:16] in shown
    damaged = artefact.document.model_dump() | {"teacher": {"model": 3}}
    with pytest.raises(ValueError, match=r"teacher.model must be an object, got 3"):
        parse_document(damaged, "a file")


def few(start):
    return {
        "search": gas.training.StartSearch(start),
        "config": gas.GaussNewton(iterations=2, validate_every=1),
    }


@pytest.fixture(scope="module")
def original(folder):
    pairs = read_pairs(folder, model=digits_like())
    *_, result = gas.distill(digits_like(), *pairs.split(8), 3, **few("ddim/log_snr"))
    return gas.save(None, result, model=digits_like())


@pytest.mark.slow
def test_a_training_goes_on_from_the_solver_of_the_original(folder, original):
    student = precise(digits_like(), quantize="int4")
    sets = read_pairs(folder, model=student, student=True).split(8)
    *records, result = gas.distill(student, *sets, 3, **few(original))
    fits = [record for record in records if isinstance(record, gas.FitRecord)]
    at_start = evaluate(student, sets[1], original.table(3), l2).mean()
    assert fits[0].validation_loss == pytest.approx(float(at_start))
    assert result.loss == min(record.validation_loss for record in fits) < at_start
    assert result.start == "ddim/log_snr"


@pytest.mark.parametrize("kind", ["gs", "gs-free", "bns"])
def test_a_training_is_never_worse_than_the_table_that_it_goes_on_from(folder, original, kind, monkeypatch):
    """No step is taken, and the classical solver is not surely worse: the table is the result all the same."""
    monkeypatch.setattr("gas.training.distillation.surely_better", lambda losses, than: False)
    sets = read_pairs(folder, model=digits_like()).split(8)
    options = few(original) | {"config": gas.GaussNewton(iterations=0), "solver": kind}
    *_, result = gas.distill(digits_like(), *sets, 3, **options)
    torch.testing.assert_close(result.table().folded().outputs, original.table(3).folded().outputs)
    assert result.loss < result.best_classical_loss


@pytest.mark.parametrize(
    ("nfe", "change", "named"),
    [
        (4, {}, "this solver has no table for NFE 4; it has NFE 3"),
        (3, {"schedule": gas.Flow().config()}, "schedule flow with other noise levels"),
        (3, {"guidance": 2.0}, "guidance 2 "),
        (3, {"model": {"sample_shape": [1, 4, 4]}}, "sample shape"),
    ],
)
def test_a_solver_file_of_another_use_is_no_start(folder, original, nfe, change, named):
    start = gas.solver_file.Artefact(original.document.model_copy(update=change), "this solver")
    with pytest.raises(gas.UserError, match=named):
        next(gas.distill(digits_like(), *read_pairs(folder, model=digits_like()).split(8), nfe, **few(start)))


def test_ld3_does_not_start_at_a_learned_table(folder, original):
    with pytest.raises(gas.UserError, match="ld3 has a classical solver's formula"):
        next(
            gas.distill(
                digits_like(),
                *read_pairs(folder, model=digits_like()).split(8),
                3,
                solver="ld3",
                **few(original),
            )
        )


@pytest.mark.slow
def test_an_interrupted_training_goes_on_from_the_same_solver_only(folder, original, tmp_path):
    sets = read_pairs(folder, model=digits_like()).split(8)
    *_, whole = gas.distill(digits_like(), *sets, 3, **few(original))
    running = gas.distill(digits_like(), *sets, 3, **few(original), state=tmp_path)
    next(record for record in running if isinstance(record, gas.FitRecord))
    running.close()
    *_, rest = gas.distill(digits_like(), *sets, 3, **few(original), state=tmp_path)
    assert torch.equal(rest.table().outputs, whole.table().outputs)
    other = gas.save(None, gas.Classical("ddim", "karras", 3, 1e-3), model=digits_like())
    with pytest.raises(gas.UserError, match="it is of another run: start was"):
        next(gas.distill(digits_like(), *sets, 3, **few(other), state=tmp_path))


@pytest.mark.slow
def test_the_command_learns_for_a_student(tmp_path):
    network, start = ["--model", "digits"], ["--start", "ddim/log_snr", "--iterations", 1, "--nfe", 2]
    commands.run("pairs", *network, "--seeds", 24, "--nfe", 3, "--out", tmp_path / "pairs")
    train = ["train", *network, "--pairs", tmp_path / "pairs", *start, "--out", tmp_path / "s.json"]
    assert "--student" in commands.refused(*train, "--quantize", "int8")
    assert "must be" not in commands.refused("train", "--model", "mnist", *train[3:], "--student")
    commands.run(*train, "--quantize", "int8", "--student")
    further = ["--start", tmp_path / "s.json", *start[2:], "--out", tmp_path / "t.json", "--student"]
    commands.run(*train[:5], *further, "--quantize", "int4")
    assert gas.load(tmp_path / "t.json").document.solvers[0].start == "ddim/log_snr"
    file_content = gas.load(tmp_path / "s.json").document
    assert (
        file_content.model["quantize"] == "int8"
        and file_content.teacher["model"] == gas.zoo.load("digits").fingerprint()
    )
    sample = ["sample", *network, "--solver", tmp_path / "s.json", "--seeds", 2, "--out", tmp_path / "x.npz"]
    assert "sha256" in commands.refused(*sample)
    commands.run(*sample, "--quantize", "int8")
    output = commands.run(
        "evaluate", *network, "--quantize", "int8", "--solver", tmp_path / "s.json", "--seeds", 4
    )
    assert "learned from samples of another model" in " ".join(output.stderr.split())


def test_pairs_on_a_users_own_schedule_are_trained_on():
    class Mine(gas.VPLinear):
        def config(self):
            return {"kind": "mine"}

    model = gas.OwnModel(lambda x, t: x * (1 - t), Mine(), (2,), name="own")
    table = gas.Classical("ddim", "log_snr", 3, model.t_end).table(model.schedule)
    check_conditions(model, gas.pairs.teach(model, table, range(4)))
