from . import (
    caller as caller,
    guider as guider,
    model_card as model_card,
    planning as planning,
    scheduler as scheduler,
    serialization as serialization,
)
