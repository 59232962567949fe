"""Files that engines and Megatron dump: exact counts of experts."""
