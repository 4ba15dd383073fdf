from . import allowed as allowed, loading as loading, restricted as restricted
from .allowed import FileTensor as FileTensor, Persistent as Persistent
from .loading import (
    read_open as read_open,
    read_pickle as read_pickle,
    read_state as read_state,
    state_dict_of as state_dict_of,
)
