"""The options of each group, as they lie in conf/."""

from pathlib import Path

_CONF = Path(__file__).parents[2] / "conf"

GROUPS: dict[str, list[str]] = {}
for _file in sorted(_CONF.glob("*/**/*.yaml")):
    GROUPS.setdefault(str(_file.parent.relative_to(_CONF)), []).append(_file.stem)
