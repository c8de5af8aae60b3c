"""The deployment as KServe's SDK sees it: a model in a registry, with metadata, ready or not."""

from __future__ import annotations

import json
from typing import Any

from mad.serve.sdk import DataPlane, Model, ModelNotFound, ModelRepository
from mad.serve.service import Service
from mad.serve.wire import INPUT, POSTERIORS, Refused

MODEL_VERSION = "1"


class Defended(Model):
    """The metadata of a service's model."""

    def __init__(self, service: Service) -> None:
        super().__init__(service.name)
        self.service, self.ready = service, True

    def get_input_types(self) -> list[dict[str, Any]]:
        """Return the name, datatype and shape of the images."""
        return [{"name": INPUT, "datatype": "FP32", "shape": [-1, *self.service.shape.image]}]

    def get_output_types(self) -> list[dict[str, Any]]:
        """Return the name, datatype and shape of the posteriors."""
        return [{"name": POSTERIORS, "datatype": "FP32", "shape": [-1, self.service.shape.classes]}]


class Plane(DataPlane):
    """KServe's data plane with one model, which is ready while requests are answered."""

    def __init__(self, service: Service) -> None:
        models = ModelRepository()
        models.update(Defended(service))
        super().__init__(model_registry=models)
        self.service = service

    async def ready(self) -> bool:
        """Return whether requests are answered."""
        return self.service.ready

    async def model_ready(self, model_name: str, disable_predictor_health_check: bool = False) -> bool:
        """Return whether requests to a model are answered.

        Raises:
            Refused: with 404, if there is no such model.
        """
        self.known(model_name)
        return self.service.ready

    async def model_metadata(self, model_name: str) -> dict[str, Any]:
        """Return the metadata of a model: also its version, and the names of its classes.

        Raises:
            Refused: with 404, if there is no such model.
        """
        self.known(model_name)
        found = await super().model_metadata(model_name)
        names = json.loads(self.service.deployment.victim.class_names or "null")
        about = {} if names is None else {"parameters": {"class_names": names}}
        return {**found, "versions": [MODEL_VERSION], "platform": "pytorch", **about}

    def known(self, model_name: str, version: str | None = None) -> None:
        """Check a model's name and version.

        Raises:
            Refused: with 404, if there is no such model.
        """
        try:
            self.get_model_from_registry(model_name)
        except ModelNotFound as error:
            raise Refused(404, f"there is no such model; there is {self.service.name}") from error
        if version not in (None, "", MODEL_VERSION):
            raise Refused(404, f"there is no such version; there is {MODEL_VERSION}")
