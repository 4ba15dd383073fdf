"""What diffusers asks of every scheduler of its own, and what a switch between schedulers may change: nothing."""

import copy
import inspect
import logging
import pickle
import warnings

import diffusers
import numpy as np
import pytest
import torch
from diffusers.utils import DummyObject

import gas
from gas.pipelines.process import process_of
from support.covering import covering, thinned
from support.schedulers import learned, noise, pipeline

BETAS = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
CONFIGS = {
    "noise": BETAS,
    "v": {**BETAS, "prediction_type": "v_prediction"},
    "sample": {**BETAS, "prediction_type": "sample"},
    "flow": {"num_train_timesteps": 1000, "prediction_type": "flow_prediction", "shift": 3.0},
}
DEFAULTS = "_use_default_values"
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*(no table for NFE|starts at step).*"),
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),  # theirs
]


@pytest.fixture(autouse=True)
def _quick_kdpm2(monkeypatch):
    """Made without the times of their first grid, which take them half a second each."""
    for cls in (diffusers.KDPM2DiscreteScheduler, diffusers.KDPM2AncestralDiscreteScheduler):
        monkeypatch.setattr(cls, "_sigma_to_t", lambda self, *_: 0.0)


WITH_AND_WITHOUT = [f"{name}{end}" for name in CONFIGS for end in ("", "+solver")]


@pytest.fixture(params=thinned(WITH_AND_WITHOUT, 5))
def config(request, tmp_path):
    """The arguments of a scheduler, with and without a solver file."""
    name, _, with_solver = request.param.partition("+")
    arguments = dict(CONFIGS[name])
    if with_solver:
        gas.save(tmp_path / "learned.json", learned(process_of({"_class_name": "GASScheduler", **arguments})))
        arguments["solver"] = str(tmp_path / "learned.json")
    return arguments


def image(seed=0):
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def first_step(scheduler, steps=10, timestep=1, **arguments):
    scheduler.set_timesteps(steps)
    scheduler.scale_model_input(image(), 0)
    return scheduler.step(0.1 * image(), timestep, image(), **arguments)


def logged(call, caplog):
    """The result of a call and what diffusers logged in it."""
    caplog.clear()
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    try:
        return call(), caplog.text
    finally:
        logger.removeHandler(caplog.handler)


@covering(save=["save_config", "save_pretrained"], config=WITH_AND_WITHOUT, indirect=["config"])
def test_a_saved_scheduler_steps_alike(config, save, tmp_path):
    scheduler = gas.GASScheduler(**config)
    getattr(scheduler, save)(tmp_path / "saved")
    again = gas.GASScheduler.from_pretrained(tmp_path / "saved")
    for timestep in (0, 1, 1.0, 500, torch.tensor(3)):
        want = first_step(scheduler, timestep=timestep, generator=torch.manual_seed(0)).prev_sample
        got = first_step(again, timestep=timestep, generator=torch.manual_seed(0)).prev_sample
        assert torch.equal(got, want) and want.shape == image().shape


def test_the_config_of_a_saved_scheduler(config, tmp_path):
    scheduler = gas.GASScheduler(**config)
    assert DEFAULTS in scheduler.config
    scheduler.save_pretrained(tmp_path / "saved")
    again = gas.GASScheduler.from_pretrained(tmp_path / "saved")
    want = dict(scheduler.config)
    del want[DEFAULTS]
    assert dict(again.config) == want and want["_class_name"] == "GASScheduler"


def test_compatible_schedulers_and_back(config):
    scheduler = gas.GASScheduler(**config)
    names = {cls.__name__ for cls in scheduler.compatibles}
    assert "FlowMatchEulerDiscreteScheduler" in names and "EDMEulerScheduler" not in names
    for cls in scheduler.compatibles:
        other = cls.from_config(scheduler.config)
        again = gas.GASScheduler.from_config(other.config)
        assert {k: v for k, v in again.config.items() if k in scheduler.config} == dict(scheduler.config), cls
        added = set(again.config) - set(scheduler.config)
        assert not added & set(inspect.signature(gas.GASScheduler.__init__).parameters)
        assert (again.artefact is None) == (scheduler.artefact is None)


def test_dict_and_tuple_agree(config):
    scheduler = gas.GASScheduler(**config)
    named = first_step(scheduler, 50, 0)
    plain = first_step(scheduler, 50, 0, return_dict=False)
    assert all(torch.equal(a, b) for a, b in zip(plain, named.values(), strict=True))


def test_the_public_names(config):
    scheduler, x = gas.GASScheduler(**config), image()
    assert scheduler.init_noise_sigma and callable(scheduler.step)
    assert scheduler.scale_model_input(x, 0.0).shape == x.shape
    scheduler.set_timesteps(100)
    noised = scheduler.add_noise(x, torch.randn_like(x), scheduler.timesteps[5][None])
    assert noised.shape == x.shape
    assert "kwargs" not in inspect.signature(gas.GASScheduler.__init__).parameters
    assert gas.GASScheduler._deprecated_kwargs == []


@pytest.mark.parametrize("name", ["noise", "v", "sample"])
def test_trained_betas(name, tmp_path):
    scheduler = gas.GASScheduler(**CONFIGS[name], trained_betas=np.array([0.1, 0.3]))
    scheduler.save_pretrained(tmp_path / "saved")
    again = gas.GASScheduler.from_pretrained(tmp_path / "saved")
    assert scheduler.betas.tolist() == again.betas.tolist() == pytest.approx([0.1, 0.3])
    assert torch.isfinite(pipeline(again, noise(1, 3), 4)).all()


def test_attributes(config, caplog):
    scheduler = gas.GASScheduler(**config)
    scheduler.dummy_attribute = 5
    scheduler.register_to_config(test_attribute=5)
    values, text = logged(lambda: (scheduler.dummy_attribute, scheduler.save_pretrained), caplog)
    assert values == (5, scheduler.save_pretrained) and text == ""
    with pytest.warns(FutureWarning, match="test_attribute"):
        assert scheduler.test_attribute == 5
    with pytest.raises(AttributeError, match="'GASScheduler' object has no attribute 'does_not_exist'"):
        scheduler.does_not_exist  # noqa: B018


# Every scheduler of diffusers that samples a VP, EDM or flow model and is installed: some need scipy or torchsde.
NAMES = """
CogVideoXDDIM CogVideoXDPM CosineDPMSolverMultistep DDIM DDIMInverse DDIMParallel DDPM DDPMParallel DEISMultistep
DPMSolverMultistep DPMSolverMultistepInverse DPMSolverSDE DPMSolverSinglestep EDMDPMSolverMultistep EDMEuler
EulerAncestralDiscrete EulerDiscrete FlowMatchEulerDiscrete FlowMatchHeunDiscrete HeunDiscrete KDPM2AncestralDiscrete
KDPM2Discrete LMSDiscrete PNDM SASolver UniPCMultistep
"""
CLASSES = [getattr(diffusers, f"{name}Scheduler") for name in NAMES.split()]
OTHERS = {cls.__name__: cls for cls in CLASSES if not isinstance(cls, DummyObject)}
SET = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 500,
    "prediction_type": "v_prediction",
    "shift": 3.0,
    "sigma_max": 70.0,
    "sigma_min": 0.01,
    "solver_order": 3,
    "steps_offset": 1,
    "stochastic_sampling": True,
    "timestep_spacing": "trailing",
}


def config_of(cls, kind, folder):
    """The config of a scheduler as it is made, with some keys set, or as it is loaded."""
    known = inspect.signature(cls.__init__).parameters
    if kind == "fresh":
        return cls().config
    if kind == "set":
        return cls(**{key: value for key, value in SET.items() if key in known}).config
    cls(num_train_timesteps=500).save_pretrained(folder)
    return cls.from_pretrained(folder).config


def converted(cls, config, *marks):
    """The config of another scheduler made from this one, or the error where diffusers itself cannot."""
    try:
        result = dict(cls.from_config(config).config)
    except (NotImplementedError, TypeError, ValueError) as error:
        return repr(error)
    return {**result, **dict.fromkeys(marks), DEFAULTS: sorted(result.get(DEFAULTS, []))}


def conversions():
    """Every scheduler in each of three ways; one way of every fourth is fast."""
    kinds = ["fresh", "set", "loaded"]
    for number, name in enumerate(name for name in OTHERS if "Inverse" not in name):
        for kind in kinds:
            fast = number % 4 == 0 and kind == kinds[number // 4 % 3]
            # A config of this one's two keys may be of another class.
            if name != "FlowMatchHeunDiscreteScheduler" or kind == "loaded":
                yield pytest.param(name, kind, marks=() if fast else pytest.mark.slow)


@pytest.mark.parametrize(("name", "kind"), list(conversions()))
def test_conversion_through_ours_changes_nothing(name, kind, tmp_path):
    """To every other scheduler, from memory and from a file."""
    theirs = config_of(OTHERS[name], kind, tmp_path / "theirs")
    ours = gas.GASScheduler.from_config(theirs).config
    assert ours.get("_class_name") == ("GASScheduler" if kind == "loaded" else None)
    assert ours.get("_diffusers_version") == theirs.get("_diffusers_version")
    saver = gas.GASScheduler.from_config(theirs)
    saver.save_pretrained(tmp_path / "ours")  # which marks its config with the class and the version
    loaded = gas.GASScheduler.from_pretrained(tmp_path / "ours")
    assert loaded.process == saver.process
    marks = ("_class_name", "_diffusers_version")
    for other in OTHERS.values():
        assert converted(other, ours) == converted(other, theirs), other
        assert converted(other, loaded.config, *marks) == converted(other, theirs, *marks), other


KARRAS = [
    f"{name}Scheduler" for name in ("DDIM", "PNDM", "EulerDiscrete", "DPMSolverMultistep", "UniPCMultistep")
]


@covering(step=2, name=[*KARRAS, "FlowMatchEulerDiscreteScheduler"], loaded=[False, True])
def test_a_switch_warns_of_nothing(name, loaded, tmp_path, caplog):
    theirs = config_of(getattr(diffusers, name), "loaded" if loaded else "set", tmp_path / "theirs")
    ours = gas.GASScheduler.from_config(
        theirs, solver=learned(process_of(theirs)), strict=True, guidance_scale=2.0
    )
    ours.save_pretrained(tmp_path / "ours")
    for scheduler in (ours, gas.GASScheduler.from_pretrained(tmp_path / "ours")):
        for other in KARRAS:
            switched, text = logged(
                lambda s=scheduler, o=other: getattr(diffusers, o).from_config(s.config), caplog
            )
            assert text == ""
            back, text = logged(lambda s=switched: gas.GASScheduler.from_config(s.config), caplog)
            assert text == "" and back.artefact is not None and back.config.strict


def test_the_solver_is_not_in_the_config(tmp_path):
    solver = learned(process_of({"_class_name": "GASScheduler", **BETAS}), nfe=10)
    scheduler, x = gas.GASScheduler(**BETAS, solver=solver), noise(1, 4)
    assert scheduler.config.solver == "solver.json" and len(repr(scheduler)) < 2000
    want = pipeline(scheduler, x, 10)
    for again in (copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))):  # noqa: S301 (our own)
        assert torch.equal(pipeline(again, x, 10), want)
    converted = diffusers.DDIMScheduler.from_config(scheduler.config)
    assert torch.equal(pipeline(gas.GASScheduler.from_config(converted.config), x, 10), want)
    converted.save_pretrained(tmp_path / "there")  # without the numbers
    for make in (
        lambda: gas.GASScheduler.from_config(
            diffusers.DDIMScheduler.from_pretrained(tmp_path / "there").config
        ),
        lambda: gas.GASScheduler.from_pretrained(tmp_path / "there"),
    ):
        with pytest.raises(ValueError, match=r"names the solver file 'solver.json' .* pass solver="):
            make()
    assert gas.GASScheduler.from_pretrained(tmp_path / "there", solver=solver).artefact.nfes == [10]


def test_a_solver_on_the_hub_is_fetched_with_its_config(tmp_path, monkeypatch):
    scheduler = gas.GASScheduler(
        **BETAS, solver=learned(process_of({"_class_name": "GASScheduler", **BETAS}))
    )
    scheduler.save_pretrained(tmp_path)
    fetched = []

    def download(repo_id, filename, subfolder=None, **_):
        fetched.append(filename)
        return str(tmp_path / filename.removeprefix("scheduler/"))

    monkeypatch.setattr("diffusers.configuration_utils.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    again = gas.GASScheduler.from_pretrained("owner/name", subfolder="scheduler")
    assert again.artefact.document == scheduler.artefact.document
    assert fetched == ["scheduler_config.json", "scheduler/solver.json"]


@pytest.mark.parametrize("steps", [1000, 2000, 4000, 10000])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_any_number_of_training_steps(schedule, steps, zero_snr):
    arguments = {"num_train_timesteps": steps, "beta_schedule": schedule, "prediction_type": "v_prediction"}
    scheduler = gas.GASScheduler(**arguments, rescale_betas_zero_snr=zero_snr)
    theirs = diffusers.DDPMScheduler(**arguments, rescale_betas_zero_snr=zero_snr).alphas_cumprod
    exact = theirs > (1e-6 if steps > 4000 else 1e-12)  # beyond, float32 rounds their products
    assert torch.allclose(scheduler.alphas_cumprod[exact], theirs[exact], rtol=2e-3)
    assert torch.isfinite(scheduler.betas).all() and torch.isfinite(pipeline(scheduler, noise(1, 3), 5)).all()


def test_shap_e():
    theirs = diffusers.HeunDiscreteScheduler(
        num_train_timesteps=1024, beta_schedule="exp", prediction_type="sample", use_karras_sigmas=True
    )
    scheduler = gas.GASScheduler.from_config(theirs.config)
    assert torch.allclose(scheduler.alphas_cumprod, theirs.alphas_cumprod)
    assert torch.isfinite(pipeline(scheduler, noise(1, 3), 8)).all()
    with pytest.raises(
        ValueError, match=r"beta_schedule of HeunDiscreteScheduler must be one of .*, got 'none'"
    ):
        gas.GASScheduler.from_config(
            {**theirs.config, "_class_name": "HeunDiscreteScheduler", "beta_schedule": "none"}
        )


def test_noise_levels_at_float_times():
    scheduler = gas.GASScheduler(**BETAS)
    scheduler.set_timesteps(7)
    alpha = scheduler.process.schedule(scheduler._times)[0]
    levels = torch.stack([scheduler.alphas_cumprod[t] for t in scheduler.timesteps])
    assert torch.allclose(levels.double(), alpha**2, rtol=1e-4)
    assert torch.equal(
        scheduler.alphas_cumprod[[0, 999]], torch.as_tensor(scheduler.alphas_cumprod)[[0, 999]]
    )
    assert type(scheduler.alphas_cumprod.sqrt()) is type(scheduler.alphas_cumprod[3]) is torch.Tensor
    assert torch.equal(copy.deepcopy(scheduler).alphas_cumprod, scheduler.alphas_cumprod)
    with pytest.raises(IndexError, match="a scheduler of whole timesteps"):
        scheduler.alphas[1.5:7.0]


@pytest.mark.parametrize("name", ["model_outputs", "_get_variance", "undo_step"])
def test_pipelines_that_work_inside_a_scheduler(name):
    scheduler = gas.GASScheduler()
    assert not hasattr(scheduler, name)
    with pytest.raises(
        AttributeError,
        match=rf"no attribute '{name}': a pipeline that uses it needs the scheduler",
    ):
        getattr(scheduler, name)


FLOW = {"use_dynamic_shifting": True, "time_shift_type": "linear"}


@pytest.mark.filterwarnings("ignore:of the sigmas passed only the number")
def test_timesteps_and_sigmas_of_a_flow():
    """CogView4 tells its network the times before the shift."""
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(**FLOW)
    timesteps = np.linspace(1000, 1, 6).astype(np.int64).astype(np.float32)
    ours = gas.GASScheduler.from_config(theirs.config, schedule="pipeline", base="ddim/shifted")
    plain = gas.GASScheduler.from_config(theirs.config)
    for scheduler in (theirs, ours, plain):
        scheduler.set_timesteps(timesteps=timesteps, sigmas=timesteps / 1000, mu=2.5)
    assert torch.allclose(ours.timesteps, theirs.timesteps) and torch.allclose(ours.sigmas, theirs.sigmas)
    x = y = noise(1, 4, dtype=torch.float32)
    for t in theirs.timesteps:
        velocity = torch.tanh(x) + t / 1000
        x, y = ours.step(velocity, t, x)[0], theirs.step(velocity, t, y)[0]
        assert torch.allclose(x, y, atol=1e-5)
    level = plain._times / (2.5 - 1.5 * plain._times)  # before the shift
    assert torch.allclose(plain.timesteps.double(), 1000 * level, atol=1e-2)
    noised = plain.scale_noise(x, torch.tensor([500.0]), torch.zeros_like(x))
    assert torch.allclose(noised, x * (1 - 2.5 * 0.5 / (1 + 1.5 * 0.5)), atol=1e-5)
    with pytest.raises(ValueError, match="must be equally many, got 6 and 5"):
        ours.set_timesteps(timesteps=timesteps, sigmas=timesteps[1:] / 1000, mu=2.5)


def test_times_of_each_token():
    """As LTX with conditions and Sana WM pass them: clean tokens stay, the others go their way."""
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    ours = gas.GASScheduler.from_config(theirs.config, base="ddim/shifted")
    x = y = noise(2, 5, 3, dtype=torch.float32)
    moves = torch.tensor([0, 1, 1, 0, 1]).expand(2, 5)
    theirs.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    ours.set_timesteps(4)
    for t in ours.timesteps:
        answer = torch.tanh(x)
        x = ours.step(answer, t, x, per_token_timesteps=t * moves, return_dict=False)[0]
        y = theirs.step(answer, t, y, per_token_timesteps=t * moves, return_dict=False)[0]
        assert torch.allclose(x, y, atol=1e-5)
    assert torch.equal(x[:, 0], noise(2, 5, 3, dtype=torch.float32)[:, 0])
    ours.set_timesteps(4)
    with pytest.raises(ValueError, match=r"per_token_timesteps must be the step's timestep or 0"):
        ours.step(x, ours.timesteps[0], x, per_token_timesteps=0.5 * ours.timesteps[0] * moves)
    with pytest.raises(ValueError, match="pred_original_sample is not supported"):
        ours.step(x, ours.timesteps[0], x, pred_original_sample=x)


class Pipeline(diffusers.DiffusionPipeline):
    """Hands over sigmas as Mochi, Bria and others do: its own, unless the user passed some."""

    def __init__(self, scheduler):
        super().__init__()
        self.register_modules(scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, num_inference_steps=4, sigmas=None, **kwargs):
        sigmas = np.linspace(1, 0.01, num_inference_steps) ** 2 if sigmas is None else sigmas
        self.scheduler.set_timesteps(sigmas=sigmas)


def test_only_sigmas_of_the_user_draw_a_warning():
    pipe = Pipeline(gas.GASScheduler(**CONFIGS["flow"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe()
    with pytest.warns(UserWarning, match="of the sigmas passed only the number, 4, is used"):
        pipe(sigmas=[1.0, 0.9, 0.5, 0.2])
    with pytest.warns(UserWarning, match="of the sigmas passed only the number, 3, is used"):
        Pipeline(gas.GASScheduler(**CONFIGS["flow"]))(3, [1.0, 0.9, 0.5])
