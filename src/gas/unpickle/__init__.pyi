from . import loading as loading, plain as plain, reader as reader
from .loading import (
    read_open as read_open,
    read_pickle as read_pickle,
    read_state as read_state,
    state_dict_of as state_dict_of,
)
from .plain import FileTensor as FileTensor, Persistent as Persistent
