"""The readme as a package index shows it: there a link into this repository would lead nowhere, so it is its text."""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class IndexReadme(MetadataHookInterface):
    """Gives the package its readme (`[tool.hatch.metadata.hooks.custom]`)."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the readme, its relative links replaced by their texts."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        plain = re.sub(r"!?\[([^\]]+)\]\((?!https?:)[^)]+\)", r"\1", text)
        metadata["readme"] = {"content-type": "text/markdown", "text": plain}
