"""The user's own configuration files: found beside those of the package, in the same groups.

    conf/                 in the working directory: conf/data/mine.yaml is data=mine, conf/experiment/mine.yaml ...
    ~/.config/txl/        for everything that this user runs, such as site/slurm.yaml ($XDG_CONFIG_HOME/txl)
    --config-dir FOLDER   searched before both

A file of the package is never replaced by one of the user's with the same name.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from txl.files import CONF

if TYPE_CHECKING:
    from hydra.core.config_search_path import ConfigSearchPath


def user_conf_folders() -> list[Path]:
    """The folders of the user's own files that exist, in the order in which they are searched."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
    folders = [Path("conf").absolute(), home / "txl"]
    return [folder for folder in folders if folder.is_dir() and folder.resolve() != CONF]


def search_user_conf(config_dir: str | None) -> None:
    """Let Hydra search the user's folders after the package's; `config_dir` (--config-dir) comes first of them."""
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    folders = [Path(config_dir).absolute()] if config_dir and Path(config_dir).is_dir() else []
    folders += user_conf_folders()

    class UserConf(SearchPathPlugin):
        def manipulate_search_path(self, search_path: "ConfigSearchPath") -> None:
            for folder in folders:
                search_path.append("user", f"file://{folder}")

    Plugins.instance().register(UserConf)
