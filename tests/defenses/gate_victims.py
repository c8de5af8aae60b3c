"""Victims with many held-out images for a gate to calibrate on."""

from toys import SmallNet, trainer, victim

from mad.testing import Blobs

TOY = victim(dataset=Blobs(size=700), validation=0.4, architecture=SmallNet, trainer=trainer(epochs=1))


FLAT = victim(dataset=Blobs(size=700), validation=0.4)
