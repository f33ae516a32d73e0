"""A real browser without a screen: Qt WebEngine, which is Chromium and comes with pip.

:class:`Browser` drives it from a test. It runs in a process of its own, this file as a script,
because OpenCV brings another Qt into the tests.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

TIMEOUT = 20  # seconds
SIZE = (1200, 900)  # of the window, pixels


class Browser:
    """A page in a window of 1200 x 900 pixels.

    Attributes:
        requests: URLs that the page has asked for, known after :meth:`close`.
        errors: What it has written to the console, likewise.
    """

    def __init__(self, page: Path) -> None:
        environment = {key: os.environ[key] for key in os.environ if not key.startswith('QT_')}
        environment |= {
            'QT_QPA_PLATFORM': 'offscreen',
            'QTWEBENGINE_CHROMIUM_FLAGS': '--no-sandbox --disable-gpu',
            'QT_LOGGING_RULES': '*=false',
        }
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(page)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if missing := self._answer():  # once the page is loaded
            self._process.wait(TIMEOUT)
            pytest.skip(f'Qt WebEngine does not find a library of the system: {missing}')

    def __enter__(self) -> 'Browser':
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self.requests, self.errors = self._do('close')
        self._process.wait(TIMEOUT)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        return json.loads(self._do('evaluate', f'JSON.stringify({expression}) ?? "null"'))

    def wait_for(self, expression: str) -> None:
        """Until a JavaScript expression is true."""
        end = time.monotonic() + TIMEOUT
        while not self.evaluate(f'Boolean({expression})'):
            assert time.monotonic() < end, f'{expression} is still not true'
            time.sleep(0.02)

    def move(self, selector: str, x: float = 0.5, y: float = 0.5) -> None:
        """Move the mouse to a point of an element, in fractions of its size."""
        self._do('move', *self._place(selector, x, y))

    def click(self, selector: str, x: float = 0.5, y: float = 0.5) -> None:
        """Click a point of an element, in fractions of its size."""
        self._do('click', *self._place(selector, x, y))

    def press(self, key: str) -> None:
        """Press a key, such as ``'Escape'``."""
        self._do('press', key)

    def _place(self, selector: str, x: float, y: float) -> tuple[int, int]:
        self.evaluate(f"document.querySelector('{selector}').scrollIntoView({{block: 'nearest'}})")
        box = self.evaluate(f"document.querySelector('{selector}').getBoundingClientRect()")
        return int(box['x'] + x * box['width']), int(box['y'] + y * box['height'])

    def _do(self, *command: Any) -> Any:
        self._process.stdin.write(json.dumps(command) + '\n')
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        line = self._process.stdout.readline()
        assert line, f'the browser stopped with status {self._process.wait(TIMEOUT)}'
        return json.loads(line)


def serve(path: str) -> None:
    """Show a page and do what is asked on standard input, one JSON list per line."""
    from PySide6.QtCore import QPoint, QSocketNotifier, Qt, QUrl
    from PySide6.QtTest import QTest
    from PySide6.QtWebEngineCore import QWebEnginePage, QWebEngineUrlRequestInterceptor
    from PySide6.QtWebEngineWidgets import QWebEngineView
    from PySide6.QtWidgets import QApplication

    requests, messages = [], []

    class Page(QWebEnginePage):
        def javaScriptConsoleMessage(self, level: Any, message: str, *place: Any) -> None:
            if level == QWebEnginePage.ErrorMessageLevel:
                messages.append(message)

    class Interceptor(QWebEngineUrlRequestInterceptor):
        def interceptRequest(self, info: Any) -> None:
            requests.append(info.requestUrl().toString())

    def answer(value: Any) -> None:
        print(json.dumps(value), flush=True)

    def obey() -> None:
        verb, *rest = json.loads(sys.stdin.readline())
        if verb == 'evaluate':
            page.runJavaScript(rest[0], 0, answer)
            return
        target = view.focusProxy()
        if verb == 'move':
            QTest.mouseMove(target, QPoint(*rest))
        elif verb == 'click':
            QTest.mouseClick(target, Qt.LeftButton, pos=QPoint(*rest))
        elif verb == 'press':
            QTest.keyClick(target, getattr(Qt.Key, f'Key_{rest[0]}'))
        if verb != 'close':
            answer(None)
            return
        answer([requests, messages])
        app.quit()

    app = QApplication([])
    view = QWebEngineView()
    page, interceptor = Page(view), Interceptor()
    page.setUrlRequestInterceptor(interceptor)
    view.setPage(page)
    view.resize(*SIZE)
    page.loadFinished.connect(lambda: answer(None))
    notifier = QSocketNotifier(sys.stdin.fileno(), QSocketNotifier.Read)
    notifier.activated.connect(obey)
    view.load(QUrl.fromLocalFile(path))
    view.show()
    app.exec()


if __name__ == '__main__':
    try:
        serve(sys.argv[1])
    except ModuleNotFoundError:  # requirements/tests.txt is not installed
        raise
    except ImportError as error:
        print(json.dumps(str(error)))
