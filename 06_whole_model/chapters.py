"""Put the five chapters on the path: the one place where they meet. `import chapters` before anything of theirs.

    import chapters  # noqa: F401

Chapters 01 to 05 know nothing of each other; each is a folder of plain modules. From here on their names can be
imported as if they lay beside this file, which itself needs nothing but the standard library.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = sorted(str(folder) for folder in ROOT.glob("0[1-5]_*"))
sys.path[1:1] = [folder for folder in FOLDERS if folder not in sys.path]  # behind the script's own folder
