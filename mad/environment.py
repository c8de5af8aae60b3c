"""The names of the environment variables that this program's processes read or set."""

DATA = "MAD_DATA"  # the torchvision root
SLOT = "MAD_SLOT"  # which of the processes that share this machine one is
TRACEBACK = "MAD_TRACEBACK"  # tells the jobs of a sweep that HYDRA_FULL_ERROR was the user's wish
