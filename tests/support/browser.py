"""A headless Chromium that opens pages from files; its network is switched off."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

BROWSERS = ("chromium", "google-chrome")  # Debian's package chromium; what GitHub's machines have
DRIVER = "chromedriver"  # Debian's package chromium-driver
PATIENCE = 60  # seconds


def browser_program() -> str | None:
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def missing_programs() -> list[str]:
    found = {"chromium": browser_program(), DRIVER: shutil.which(DRIVER)}
    return [name for name, program in found.items() if program is None]


class Browser:
    """What the tests do with a page."""

    def __init__(self, driver: webdriver.Chrome):
        self.driver = driver

    def open(self, page: Path) -> None:
        """Open the page, and wait until its curves are drawn."""
        self.driver.get(page.resolve().as_uri())
        WebDriverWait(self.driver, PATIENCE).until(lambda d: self.ask("document.documentElement.dataset.ready"))

    def ask(self, expression: str) -> Any:
        return self.driver.execute_script(f"return {expression}")

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element("css selector", selector)

    def find_all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements("css selector", selector)

    def click(self, selector: str) -> None:
        self.find(selector).click()

    def choose(self, selector: str, value: str) -> None:
        self.find(f'{selector} option[value="{value}"]').click()

    def hover(self, element: WebElement, x: int = 0, y: int = 0) -> None:
        """Move the mouse to a place relative to the middle of an element."""
        ActionChains(self.driver).move_to_element_with_offset(element, x, y).perform()

    def drag(self, element: WebElement, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Draw a box with the mouse; places relative to the middle of an element, in parts of its size."""
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        size = element.size
        places = [(round(x * size["width"]), round(y * size["height"])) for x, y in (start, end)]
        actions = ActionChains(self.driver).move_to_element_with_offset(element, *places[0]).click_and_hold()
        actions.move_to_element_with_offset(element, *places[1]).release().perform()

    def wait_for(self, expression: str) -> None:
        WebDriverWait(self.driver, PATIENCE).until(lambda d: self.ask(expression))

    def errors(self) -> list[str]:
        """What the page wrote to the console as an error, since the last call."""
        entries = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]


@contextlib.contextmanager
def headless_browser(width: int = 1280, height: int = 1000) -> Iterator[Browser]:
    """Chromium without a window and without a network."""
    options = webdriver.ChromeOptions()
    options.binary_location = browser_program() or ""
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--window-size={width},{height}")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which(DRIVER)))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
