"""How many threads compute and how they wait, chosen as in ``train.py`` before torch loads."""

from moe_model.threads import choose_waiting as choose_waiting
from moe_model.threads import settle_threads as settle_threads
