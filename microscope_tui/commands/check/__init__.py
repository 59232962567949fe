"""``moe-microscope check``: the verdict, for Slurm and CI."""
