"""Take the pictures of the explorer that the README shows, from a trained model in a real Chromium.

    python docs/draw_explorer.py runs/demo
"""

import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "serving"))
from browser import Browser

from deepseek_v3.commands.explore import explorer_files, model_folder, open_server, pages_of

# File, its place in the explorer, colours, height in pixels and how far down.
PICTURES = [
    ("explorer_flow.png", "view=flow&layer=1&entry=40", False, 905, 0),
    ("explorer_routing.png", "view=routing&layer=1", True, 905, 0),
]
WIDTH = 1180


def main(run: str) -> None:
    """Serve the explorer on a free port, open each place, write what is seen."""
    with open_server(pages_of(explorer_files(), model_folder(run)), 0) as server, Browser(WIDTH, 900) as browser:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name, place, dark, height, top in PICTURES:
            browser.resize(WIDTH, height, dark=dark)
            browser.call("Page.navigate", url="about:blank")
            browser.call("Page.navigate", url=f"http://127.0.0.1:{server.server_address[1]}/#{place}")
            browser.wait("document.body && document.body.dataset.ready === 'true'")
            browser.run(f"window.scrollTo(0, {top})")
            time.sleep(0.5)
            browser.picture(HERE / name)
            print(name, (HERE / name).stat().st_size, "bytes")
        server.shutdown()


if __name__ == "__main__":
    main(sys.argv[1])
