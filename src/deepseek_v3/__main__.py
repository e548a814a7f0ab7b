"""`python -m deepseek_v3` is the command `deepseek-v3`."""

import sys

from deepseek_v3.cli import main

if __name__ == "__main__":
    sys.exit(main())
