"""Two ways to learn from a judge without its gradient, at equal network evaluations: ``--help`` lists the options.

The library linearizes the network (:class:`gas.training.judge_steps.JudgeSteps`); an antithetic evolution strategy
moves all parameters at random, both ways, on common noise. Both start at one classical table, walk through one pool and
are chosen on the same held noise, within one trust region.

With ``--measure``, solver files or classical solvers instead, beside the teacher on unseen pairs: cross-entropy of the
wanted class, the Frechet distance to real images, and precision, recall and coverage of them, as a Markdown table.
"""

import argparse
from pathlib import Path

import rows
import torch

import gas
from gas.evaluation import Evaluator, feature_space, sample_pairs
from gas.evaluation.sampler import teacher_pairs
from gas.features.judges import judge_by_name, scores_of
from gas.losses import l2
from gas.training.initialization import reference_solver
from gas.training.judge_steps import JudgeAscent, JudgeSteps


def main() -> None:
    """Print the held score of both after every few thousand network evaluations."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="digits")
    parser.add_argument("--nfe", type=int, default=4)
    parser.add_argument("--start", default="unipc-2-bh2/time_quadratic")
    parser.add_argument("--evaluations", type=int, default=20_000)
    parser.add_argument("--sigma", type=float, default=0.01, help="size of the random moves")
    parser.add_argument("--rate", type=float, default=0.01, help="learning rate of the evolution strategy")
    parser.add_argument("--measure", nargs="+", default=[], metavar="FILE_OR_SOLVER/GRID")
    parser.add_argument("--unseen", type=Path, help="teacher pairs for --measure")
    parser.add_argument("--real", type=Path, help="folder of MNIST's IDX files for --measure")
    parser.add_argument("--samples", type=int, default=2000, help="pairs for --measure")
    options = parser.parse_args()
    model = gas.zoo.load(options.model)
    if options.measure:
        print_measures(model, options)
        return
    pool, held = teacher_pairs(model, reference_solver(model), range(2**42, 2**42 + 512)).split(256)
    table = gas.Classical(*options.start.split("/"), options.nfe, model.t_end).table(model.schedule)
    judge = judge_by_name("classifier", model)

    def measure(solver: torch.nn.Module) -> tuple[float, float]:
        samples = sample_pairs(model, held, solver().detach())
        return float(scores_of(judge, samples, held.labels).mean()), float(l2(samples, held.target).mean())

    print(rows.command(), rows.machine())
    for name, make in (("linearized", Linearized), ("evolution", Evolution)):
        solver = gas.GeneralizedSolver.from_table(model.schedule, table, model.t_end)
        score, unit = measure(solver)
        print(f"{name}: 0 evaluations, score {score:.5f}", flush=True)
        steps = make(solver, model, judge, pool, unit, options)
        while steps.evaluations < options.evaluations:
            steps.step()
            if steps.iteration % 2 == 0:
                score, distance = measure(solver)
                text = f"score {score:.5f}, distance {distance / unit:.2f}"
                print(f"{name}: {steps.evaluations} evaluations, {text}", flush=True)


def print_measures(model: gas.zoo.ZooModel, options: argparse.Namespace) -> None:
    """Print the measures of the teacher and of each solver."""
    pairs = gas.read_pairs(options.unseen, model=model).subset(slice(0, options.samples))
    evaluator = Evaluator.for_model(model, pairs, feature_space(model, real=options.real))
    judge = judge_by_name("classifier", model)
    print(
        "| | cross-entropy | Fréchet to real images | precision | recall | coverage |\n|---|---|---|---|---|---|"
    )
    for name in ("teacher", *options.measure):
        if name == "teacher":
            samples = pairs.target
        elif name.endswith(".json"):
            samples = sample_pairs(model, pairs, gas.load(name).table(options.nfe))
        else:
            classical = gas.Classical(*name.split("/"), options.nfe, model.t_end)
            samples = sample_pairs(model, pairs, classical.table(model.schedule))
        losses = -scores_of(judge, samples, pairs.labels)
        half = 1.96 * float(losses.std()) / len(losses) ** 0.5
        measures = evaluator.measure(name, samples, options.nfe)
        prdc = measures.to_data.prdc
        shares = " | ".join(f"{share:.3f}" for share in (prdc.precision, prdc.recall, prdc.coverage))
        cross_entropy = f"{float(losses.mean()):.3f} ± {half:.3f}"
        print(f"| {name} | {cross_entropy} | {measures.frechet_data:.3f} | {shares} |", flush=True)


class Linearized(JudgeSteps):
    """The library's steps."""

    def __init__(self, solver, model, judge, pool, unit, options):
        super().__init__(solver, model, judge, pool, unit, JudgeAscent())


class Evolution:
    """Antithetic evolution strategy: 16 moves of 32 noises each way, Adam on their differences.

    The score is penalized for a distance beyond the same radius.
    """

    MOVES, BATCH, PENALTY = 16, 32, 1.0

    def __init__(self, solver, model, judge, pool, unit, options):
        self.solver, self.model, self.judge, self.pool, self.unit = solver, model, judge, pool, unit
        self.sigma, self.radius = options.sigma, JudgeAscent().radius
        self.parameters = list(solver.parameters())
        self.optimizer = torch.optim.Adam(self.parameters, lr=options.rate)
        self.random = torch.Generator().manual_seed(0)
        self.iteration = self.evaluations = 0

    @torch.no_grad()
    def objective(self, p, part):
        """Penalized mean score of a batch at parameters ``p``."""
        torch.nn.utils.vector_to_parameters(p, self.parameters)
        samples = sample_pairs(self.model, part, self.solver().detach())
        self.evaluations += len(part) * self.solver().nfe
        excess = float(l2(samples, part.target).mean()) / self.unit - self.radius
        return float(scores_of(self.judge, samples, part.labels).mean()) - self.PENALTY * max(0.0, excess)

    def step(self):
        """Take one step."""
        rows_ = torch.randint(len(self.pool), (self.BATCH,), generator=self.random)
        part, p = self.pool.subset(rows_), torch.nn.utils.parameters_to_vector(self.parameters).detach()
        gradient = torch.zeros_like(p)
        for _ in range(self.MOVES):
            move = torch.randn(p.shape, generator=self.random, dtype=p.dtype)
            ends = [self.objective(p + sign * self.sigma * move, part) for sign in (1, -1)]
            gradient += (ends[0] - ends[1]) / (2 * self.sigma) * move / self.MOVES
        torch.nn.utils.vector_to_parameters(p, self.parameters)
        torch.nn.utils.vector_to_parameters(-gradient, [q.grad for q in self._with_gradients()])
        self.optimizer.step()
        self.iteration += 1

    def _with_gradients(self):
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        return self.parameters


if __name__ == "__main__":
    main()
