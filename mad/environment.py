"""Names of the environment variables that this program reads or sets."""

DATA = "MAD_DATA"  # the torchvision root
SLOT = "MAD_SLOT"  # number of this process among those of the machine
TRACEBACK = "MAD_TRACEBACK"  # tells the jobs of a sweep that the user set HYDRA_FULL_ERROR
