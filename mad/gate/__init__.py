"""The parts of ``defense=gate``: features of the served network, a conformal test, decoys, and the client's test."""
