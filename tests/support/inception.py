"""The published shapes of Inception's weights (pt_inception-2015-12-05), and random weights of them."""

import torch


def shapes(divide=1):
    """Convolutions by name: (out, in, height, width), every width divided by ``divide``."""
    weights_by_name = {}

    def add(name, wide, deep, height, width=None):
        size = [max(1, wide // divide), deep if deep == 3 else max(1, deep // divide)]
        weights_by_name[name] = (*size, height, width or height)

    for name, branch_sizes in {
        "1a_3x3": (32, 3, 3),
        "2a_3x3": (32, 32, 3),
        "2b_3x3": (64, 32, 3),
        "3b_1x1": (80, 64, 1),
        "4a_3x3": (192, 80, 3),
    }.items():
        add(f"Conv2d_{name}", *branch_sizes)
    for block, deep, pool in (("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)):
        rows = {"1x1": (64, deep, 1), "5x5_1": (48, deep, 1), "5x5_2": (64, 48, 5), "3x3dbl_1": (64, deep, 1)}
        rows |= {"3x3dbl_2": (96, 64, 3), "3x3dbl_3": (96, 96, 3), "_pool": (pool, deep, 1)}
        for name, branch_sizes in rows.items():
            add(f"Mixed_{block}.branch{name}", *branch_sizes)
    rows = {"3x3": (384, 288, 3), "3x3dbl_1": (64, 288, 1), "3x3dbl_2": (96, 64, 3), "3x3dbl_3": (96, 96, 3)}
    for name, branch_sizes in rows.items():
        add(f"Mixed_6a.branch{name}", *branch_sizes)
    for block, c in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        rows = {"1x1": (192, 768, 1), "7x7_1": (c, 768, 1), "7x7_2": (c, c, 1, 7), "7x7_3": (192, c, 7, 1)}
        rows |= {"7x7dbl_1": (c, 768, 1), "7x7dbl_2": (c, c, 7, 1), "7x7dbl_3": (c, c, 1, 7)}
        rows |= {"7x7dbl_4": (c, c, 7, 1), "7x7dbl_5": (192, c, 1, 7), "_pool": (192, 768, 1)}
        for name, branch_sizes in rows.items():
            add(f"Mixed_{block}.branch{name}", *branch_sizes)
    rows = {"3x3_1": (192, 768, 1), "3x3_2": (320, 192, 3), "7x7x3_1": (192, 768, 1)}
    rows |= {"7x7x3_2": (192, 192, 1, 7), "7x7x3_3": (192, 192, 7, 1), "7x7x3_4": (192, 192, 3)}
    for name, branch_sizes in rows.items():
        add(f"Mixed_7a.branch{name}", *branch_sizes)
    for block, deep in (("7b", 1280), ("7c", 2048)):
        rows = {"1x1": (320, deep, 1), "3x3_1": (384, deep, 1), "3x3_2a": (384, 384, 1, 3)}
        rows |= {"3x3_2b": (384, 384, 3, 1), "3x3dbl_1": (448, deep, 1), "3x3dbl_2": (384, 448, 3)}
        rows |= {"3x3dbl_3a": (384, 384, 1, 3), "3x3dbl_3b": (384, 384, 3, 1), "_pool": (192, deep, 1)}
        for name, branch_sizes in rows.items():
            add(f"Mixed_{block}.branch{name}", *branch_sizes)
    return weights_by_name


def weights(divide=1, seed=0):
    """Random weights by all published names, drawn in the order of the names."""
    wanted = {}
    for name, shape in shapes(divide).items():
        wanted[f"{name}.conv.weight"] = shape
        for part in ("weight", "bias", "running_mean", "running_var"):
            wanted[f"{name}.bn.{part}"] = shape[:1]
    wanted["fc.weight"], wanted["fc.bias"] = (1008, max(1, 2048 // divide)), (1008,)
    generator, state = torch.Generator().manual_seed(seed), {}
    for name in sorted(wanted):
        value = torch.randn(wanted[name], generator=generator)
        if name.endswith(("running_var", "bn.weight")):
            value = 0.5 + value.abs()
        elif name.endswith("conv.weight"):
            value = value * (2 / value[0].numel()) ** 0.5
        else:
            value = 0.1 * value
        state[name] = value
    return state
