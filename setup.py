"""The wheel holds conf/ inside of txl/; in the repository it lies beside it. All else is in setup.cfg."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConf(build_py):
    """Copies conf/ to txl/conf/ of what is built, without a site's own settings."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "txl" / "conf"
            shutil.copytree("conf", target, ignore=shutil.ignore_patterns("site"), dirs_exist_ok=True)


if __name__ == "__main__":
    setup(cmdclass={"build_py": BuildWithConf})
