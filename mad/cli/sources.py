"""Hydra's sources of configs, made quicker for commands that compose many: a sweep's plan, its status, a chain."""

from __future__ import annotations

import copy
import os
from typing import Any

from hydra._internal.core_plugins import file_config_source, structured_config_source
from hydra._internal.sources_registry import SourcesRegistry
from hydra.plugins.config_source import ConfigResult

_parsed: dict[tuple[str, ...], ConfigResult] = {}


class FileConfigSource(file_config_source.FileConfigSource):  # Hydra takes a class of this name for its own
    """YAML files. A text that was parsed before is not parsed again."""

    def load_config(self, config_path: str) -> ConfigResult:
        """Return a file's config; Hydra changes it in place."""
        try:
            with open(os.path.join(self.path, self._normalize_file_name(config_path)), encoding="utf-8") as file:
                key = (self.provider, self.path, config_path, file.read())
        except (OSError, UnicodeError):
            return super().load_config(config_path)  # whose errors Hydra knows
        if key not in _parsed:
            _parsed[key] = super().load_config(config_path)
        return copy.deepcopy(_parsed[key])


class StructuredConfigSource(structured_config_source.StructuredConfigSource):
    """Registered configs. Hydra copies its sources for each composition, and with this one all that is registered."""

    def __deepcopy__(self, memo: Any) -> StructuredConfigSource:
        return self


def register() -> None:
    """Let Hydra read configs from these sources."""
    for source in (FileConfigSource, StructuredConfigSource):
        SourcesRegistry.instance().types[source.scheme()] = source
