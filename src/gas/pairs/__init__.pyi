from . import dataset as dataset, fingerprint as fingerprint, shards as shards, teacher as teacher
from .dataset import (
    Pairs as Pairs,
    StoredPairs as StoredPairs,
    check_conditions as check_conditions,
    check_pairs as check_pairs,
    join_pairs as join_pairs,
    join_scales as join_scales,
    read_pairs as read_pairs,
)
from .fingerprint import PairsSpec as PairsSpec
from .teacher import (
    PairsProgress as PairsProgress,
    Solver as Solver,
    teach as teach,
    write_pairs as write_pairs,
)
