"""A latent, guided diffusion model and a flow-matching one of MNIST, as diffusers pipelines; need diffusers."""
