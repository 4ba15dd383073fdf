"""A 4-call solver for a network that is not torch's: here ONNX Runtime's, likewise JAX's or a remote server's.

Gauss-Newton needs predictions only, no gradients, so any function from arrays to arrays will do. The network is that of
own_network.py. Run ``python onnx_network.py``; needs ``pip install 'gas-solver[onnx]'``.
"""

import onnxruntime
import torch
from own_network import alphas_cumprod, train

import gas


def export(path):
    """Train the network and write it as ONNX: ``(x, step) -> noise``, for any batch."""
    batch = torch.export.Dim("batch")
    torch.onnx.export(
        train(),
        (torch.zeros(2, 2), torch.zeros(2)),
        path,
        input_names=["x", "step"],
        dynamic_shapes=({0: batch}, {0: batch}),
        verbose=False,
    )


def main():
    export("moons.onnx")
    session = onnxruntime.InferenceSession("moons.onnx")

    def network(x, step):
        (noise,) = session.run(None, {"x": x.float().numpy(), "step": step.float().numpy()})
        return torch.from_numpy(noise)

    schedule = gas.VPDiscrete(alphas_cumprod)
    denoise = gas.denoise.NoiseDenoiser(gas.denoise.DiscreteTime(network, schedule), schedule)
    model = gas.OwnModel(denoise, schedule, sample_shape=(2,), name="moons-onnx")

    teacher = gas.Classical("unipc-3-bh2", "log_snr", nfe=40, t_end=model.t_end)
    pairs, unseen = gas.pairs.teach(model, teacher, range(256)).split(128)
    classical = gas.Classical("unipc-3-bh2", "time_uniform", nfe=4, t_end=model.t_end)
    solver = gas.GeneralizedSolver.from_table(schedule, classical.table(schedule), model.t_end)
    for record in gas.fit(solver, model, pairs):
        print(f"iteration {record.iteration}: validation loss {record.validation_loss:.6f}")
    gas.save("moons-onnx-4.json", solver, model=model, teacher=pairs.teacher, loss="l2")

    learned = gas.load("moons-onnx-4.json").table(nfe=4)
    for name, table in {"unipc": classical, "learned": learned}.items():
        error = gas.evaluate(model, unseen, table, gas.losses.l2).mean()
        print(f"{name}: mean squared error to the teacher {error:.6f}")


if __name__ == "__main__":
    main()
