"""A defended model behind the Open Inference Protocol v2, REST and gRPC: keys, budgets, metrics, an audit log.

It is built on KServe's Python SDK: ``pip install 'mad[serve]'``. Nothing here is imported by the rest of the package.
"""
