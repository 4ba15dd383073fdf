"""A 4-call scheduler for a diffusers pipeline: learn it, put it in, and draw.

The pipeline is a small one of the library; load yours with ``DiffusionPipeline.from_pretrained`` instead.
Run ``python diffusers_pipeline.py``; needs ``pip install 'gas-solver[diffusers]'``.
"""

import torch

import gas

PROMPTS = ["three", "seven", "eight", "five"]
GUIDANCE = 2.0


def main():
    pipe = gas.zoo.pipeline("mnist-latent")
    model = gas.pipelines.from_pipeline(pipe, PROMPTS)  # sample s has prompt s mod 4

    teacher = gas.Classical("unipc-3-bh2", "log_snr", nfe=12, t_end=model.t_end)
    pairs, unseen = gas.pairs.teach(model, teacher, range(24), guidance=GUIDANCE).split(8)
    solver = gas.GeneralizedSolver(model.schedule, nfe=4, t_end=model.t_end)
    # A few small steps instead of the default's 16 of up to 192 pairs.
    few = gas.GaussNewton(iterations=3, batch=8, largest=8)
    for record in gas.fit(solver, model, pairs, config=few):
        print(f"iteration {record.iteration}: validation loss {record.validation_loss:.5f}")
    gas.save("mnist-latent-4.json", solver, model=model, guidance=GUIDANCE, teacher=pairs.teacher, loss="l2")

    pipe.scheduler = gas.GASScheduler.from_config(
        pipe.scheduler.config, solver="mnist-latent-4.json", guidance_scale=GUIDANCE
    )
    noise = model.noise(unseen.seeds[:4].tolist())
    call = {"num_inference_steps": 4, "guidance_scale": GUIDANCE}
    latents = pipe(PROMPTS, latents=noise, output_type="latent", **call).images
    error = (latents - unseen.target[:4]).square().mean()
    print(f"mean squared error to 12 calls of the teacher: {error:.5f}")
    pipe("three", generator=torch.Generator().manual_seed(0), **call).images[0].save("three.png")


if __name__ == "__main__":
    main()
