"""``moe_model.threads`` for the command: it loads without torch, before waiting is chosen."""

from moe_model.threads import choose_waiting as choose_waiting, settle_threads as settle_threads
