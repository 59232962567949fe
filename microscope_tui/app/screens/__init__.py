"""The screens, one file each: what stands where, and what is shown there."""
