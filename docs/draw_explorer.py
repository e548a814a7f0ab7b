"""Take the pictures of the explorer that the README shows, from a trained model in a real Chromium.

python docs/draw_explorer.py book_model
"""

import base64
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "serving"))
from browser import Browser, answering

from deepseek_v3.commands.explore import explorer_files, model_folder, open_server, pages_of

HERE = Path(__file__).resolve().parent
# File, its place in the explorer, colours, height in pixels.
PICTURES = [
    ("explorer_flow.png", "view=flow&layer=1&entry=40", False, 1022),
    ("explorer_routing.png", "view=routing&layer=1", True, 1010),
    ("explorer_attention.png", "view=attention&layer=1&head=0", False, 1330),
]
WIDTH = 1180


def main(run: str) -> None:
    """Serve the explorer on a free port, open each place, write what is seen."""
    server = open_server(pages_of(explorer_files(), model_folder(run)), 0)
    with answering(server) as address, Browser(WIDTH, 900) as browser:
        for name, place, dark, height in PICTURES:
            browser.resize(WIDTH, 3000, dark=dark)
            browser.call("Page.navigate", url="about:blank")
            browser.call("Page.navigate", url=f"{address}#{place}")
            browser.wait("document.body && document.body.dataset.ready === 'true'")
            time.sleep(0.5)
            clip = {"x": 0, "y": 0, "width": WIDTH, "height": height, "scale": 1}
            picture = browser.call("Page.captureScreenshot", format="png", clip=clip)["data"]
            (HERE / name).write_bytes(base64.b64decode(picture))
            print(name, (HERE / name).stat().st_size, "bytes")


if __name__ == "__main__":
    main(sys.argv[1])
