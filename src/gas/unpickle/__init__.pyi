from . import lazy as lazy, loading as loading, plain as plain, reader as reader, torch_file as torch_file
from .loading import (
    Persistent as Persistent,
    explained as explained,
    is_torch_file as is_torch_file,
    read_open as read_open,
    read_pickle as read_pickle,
    state_dict_of as state_dict_of,
)
